package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"example.com/keyring/admin"
)

// A script gets a secret as it was put, a terminal without control characters.
func TestGetWritesASecretAsItIsButToATerminal(t *testing.T) {
	_, c := alone(t, nil)
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-server", c.base, "put", "a"}, strings.NewReader(hostile), &out, &out); err != nil {
		t.Fatal(err)
	}
	if out, err := runCommand(t, c, "get", "a"); err != nil || out != hostile {
		t.Errorf("a script gets %q, %v", out, err)
	}
	out.Reset()
	to, err := admin.NewClient(c.base, nil)
	if err != nil {
		t.Fatal(err)
	}
	terminal := cli{client: to, secret: printable{&out}}
	if err := terminal.get(t.Context(), []string{"a"}); err != nil || strings.ContainsRune(out.String(), '\x1b') {
		t.Errorf("a terminal gets %q, %v", &out, err)
	}
}

// hostile would clear a terminal, and then write a line of its own.
const hostile = "x\x1b[2J\nall is well\u009b\u202e"

// Whatever a server says, each command prints what it prints else, in as many lines.
func TestNothingFromAServerReachesATerminalRaw(t *testing.T) {
	text := ""
	one := func() any { return map[string]any{"path": text, "key": text, "token": text} }
	list := func() any { return []any{map[string]any{"path": text, "key": text}} }
	bad := func() any { return map[string]any{"error": text} }
	for _, test := range []struct {
		status int
		answer func() any
		args   string
	}{
		{200, one, "put -empty a"}, {200, list, "list"}, {200, one, "identity web"}, {409, bad, "put -empty a"},
	} {
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(test.status)
			json.NewEncoder(w).Encode(test.answer())
		}))
		var lines [2]int
		for i, now := range []string{"x", hostile} {
			text = now
			var out bytes.Buffer
			err := run(t.Context(), append([]string{"-server", api.URL}, strings.Fields(test.args)...), strings.NewReader(""), &out, &out)
			if err != nil {
				fmt.Fprintln(&out, err)
			}
			if lines[i] = strings.Count(out.String(), "\n"); strings.ContainsAny(out.String(), "\x1b\u009b\u202e") || lines[i] != lines[0] {
				t.Errorf("%s: %q", test.args, &out)
			}
		}
		api.Close()
	}
}
