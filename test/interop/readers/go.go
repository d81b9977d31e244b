// Reads headers (a line of base64 each) from stdin; prints whom net/mail finds in their address fields, as JSON.
package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/mail"
	"os"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for number := 0; lines.Scan(); number++ {
		result := map[string]any{"message": number, "reading": "Go, net/mail"}
		if found, err := read(lines.Text()); err != nil {
			result["error"] = err.Error()
		} else {
			result["found"] = found
		}
		out.Encode(result)
	}
}

func read(line string) (map[string][]string, error) {
	header, err := base64.StdEncoding.DecodeString(line)
	if err != nil {
		return nil, err
	}
	message, err := mail.ReadMessage(bytes.NewReader(header))
	if err != nil {
		return nil, err
	}
	found := map[string][]string{}
	for _, name := range []string{"from", "sender", "reply-to", "to", "cc"} {
		found[name] = []string{}
		list, err := message.Header.AddressList(name)
		if err == mail.ErrHeaderNotPresent {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, one := range list {
			found[name] = append(found[name], one.Address)
		}
	}
	return found, nil
}
