package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLineHasNoControlCharacters(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "",
		"app/é 世 'x' \"y\" \\z":    "app/é 世 'x' \"y\" \\z",
		"\x1b[2Ja\nb\tc\r\x00\x7f": `\u001b[2Ja\u000ab\u0009c\u000d\u0000\u007f`,
		"\u009b\u202e\u200b\u2028": `\u009b\u202e\u200b\u2028`,
		"\U000e0001":               `\udb40\udc01`,
		"\xff\xc3":                 `\xff\xc3`,
	} {
		if got := line(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestErrorsThatAreJoinedAreReadable(t *testing.T) {
	joined := errors.Join(errors.New("s1: no answer"), errors.New("s2: \x1b[2Jrefused"))
	if got, want := flat(joined.Error()+"\n"), `s1: no answer; s2: \u001b[2Jrefused`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	body := httptest.NewRecorder()
	respond(body, http.StatusConflict, joined.Error())
	if got, want := answerError(body.Result()).Error(), `409 Conflict: s1: no answer; s2: \u001b[2Jrefused`; got != want {
		t.Errorf("an answer: %q, want %q", got, want)
	}
	var out strings.Builder
	Cause{Details: []string{"s1: " + joined.Error()}}.print(&out)
	if !strings.Contains(out.String(), "s1: s1: no answer; s2: ") {
		t.Errorf("a problem: %q", &out)
	}
}

func TestPrintableKeepsLinesAndJSON(t *testing.T) {
	var out bytes.Buffer
	in := map[string]string{"a": "\x7f\u009b\u202e\U000e0001\n"}
	if err := json.NewEncoder(printable{&out}).Encode(in); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || got["a"] != in["a"] || strings.ContainsAny(out.String(), "\x7f\u009b\u202e\U000e0001") {
		t.Errorf("%q: %v", &out, err)
	}
	out.Reset()
	if n, err := (printable{&out}).Write([]byte("a\tb\n\x1bc\n")); n != 7 || err != nil || out.String() != "a\tb\n\\u001bc\n" {
		t.Errorf("%d, %v: %q", n, err, &out)
	}
}

// hostile would clear a terminal, and then write a line of its own.
const hostile = "x\x1b[2J\nall is well\u009b\u202e"

// Whatever a server says, each command prints what it prints else, in as many lines.
func TestNothingFromAServerReachesATerminalRaw(t *testing.T) {
	text := ""
	reply := func(status int, answer func() any) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			json.NewEncoder(w).Encode(answer())
		}
	}
	one := func() any {
		return map[string]any{"path": text, "key": text, "id": text, "state": text, "rewrapped": text, "addr": text, "token": text}
	}
	list := func() any { return []any{map[string]any{"id": text, "server": text, "path": text, "key": text}} }
	bad := func() any { return map[string]any{"error": text} }
	for _, test := range []struct {
		status int
		answer func() any
		args   string
	}{
		{200, one, "keys rotate"}, {200, one, "keys rewrap"},
		{200, one, "servers add s1"}, {200, one, "servers remove s1"}, {200, one, "servers token s1"}, {200, list, "servers tokens"},
		{200, one, "servers withdraw x"}, {409, bad, "servers add s1"}, {500, bad, "keys status"}, {500, bad, "backup -to x " + filepath.Join(t.TempDir(), "b")},
	} {
		api := httptest.NewServer(reply(test.status, test.answer))
		var lines [2]int
		for i, now := range []string{"x", hostile} {
			text = now
			out, err := runCommand(t, api.URL, strings.Fields(test.args)...)
			if err != nil {
				out += err.Error() + "\n"
			}
			if lines[i] = strings.Count(out, "\n"); strings.ContainsAny(out, "\x1b\u009b\u202e") || lines[i] != lines[0] {
				t.Errorf("%s: %q", test.args, out)
			}
		}
		api.Close()
	}
}

// A file's name is a row of the table like any other.
func TestNoFileNameReachesATerminalRaw(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, hostile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := runCommand(t, "", "inspect", dir)
	if err == nil || strings.Count(out, "\n") != 2 || strings.ContainsAny(out, "\x1b\u009b\u202e") {
		t.Errorf("%v: %q", err, out)
	}
}
