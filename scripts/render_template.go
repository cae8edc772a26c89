// Render Ollama templates the way Ollama does (template/template.go of ollama/ollama): with
// text/template, the function json, all system messages in .System, neighbours of one role joined.
//
//	go run scripts/render_template.go < '{"template": …, "system": …, "chats": [[{"role": …, "content": …}]]}'
//
// Writes a JSON list with one string a chat. "system" is the Modelfile's, for chats without one.
package main

import (
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func main() {
	var in struct {
		Template string      `json:"template"`
		System   string      `json:"system"`
		Chats    [][]message `json:"chats"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		log.Fatal(err)
	}
	toJSON := func(v any) string { b, _ := json.Marshal(v); return string(b) }
	t := template.New("").Option("missingkey=zero").Funcs(template.FuncMap{"json": toJSON})
	if _, err := t.Parse(in.Template); err != nil {
		log.Fatal(err)
	}
	out := make([]string, len(in.Chats))
	for i, chat := range in.Chats {
		if in.System != "" && (len(chat) == 0 || chat[0].Role != "system") {
			chat = append([]message{{"system", in.System}}, chat...)
		}
		var system []string
		var joined []message
		for _, m := range chat {
			if m.Role == "system" {
				system = append(system, m.Content)
			}
			if n := len(joined); n > 0 && joined[n-1].Role == m.Role {
				joined[n-1].Content += "\n\n" + m.Content
			} else {
				joined = append(joined, m)
			}
		}
		var text strings.Builder
		values := map[string]any{
			"System": strings.Join(system, "\n\n"), "Messages": joined, "Response": "",
		}
		if err := t.Execute(&text, values); err != nil {
			log.Fatal(err)
		}
		out[i] = text.String()
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		log.Fatal(err)
	}
}
