package admin

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestServerURL(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.1:8002": "http://127.0.0.1:8002", "localhost:8002": "http://localhost:8002", "[::1]:8002": "http://[::1]:8002",
		"http://127.0.0.1:8002": "http://127.0.0.1:8002", "http://127.0.0.1:8002/": "http://127.0.0.1:8002", "https://host": "https://host", "http://host/v1/": "http://host/v1", "host:8443": "https://host:8443", "10.0.0.1:8443/x": "https://10.0.0.1:8443/x",
		"": "", "http://": "", "ftp://host:1": "", "http://user@host": "", "http://host?x": "", "http://ho st": "", "http://host:port": "",
	} {
		if got, err := parseURL(text); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	if _, err := runCommand(t, "ftp://host", "servers", "tokens"); !isUsage(err) {
		t.Errorf("%v is no wrong usage", err)
	}
}

// What answers may be another program. The status alone says little.
func TestAnAnswerOfAnotherProgram(t *testing.T) {
	for _, test := range []struct {
		status     int
		body, want string
	}{
		{200, "<html>", "is no keyring"},
		{404, "404 page not found\nmore", "404 Not Found: 404 page not found"},
		{500, "", "the answer has no text"},
		{500, `{"error":""}`, "500 Internal Server Error: "},
		{409, `{"error":"taken"}`, "409 Conflict: taken"},
	} {
		api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(test.status)
			w.Write([]byte(test.body))
		}))
		if _, err := runCommand(t, api.URL, "servers", "tokens"); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%d %q: %v", test.status, test.body, err)
		}
		api.Close()
	}
}

// A backup that came while this one was made stays, and of this one nothing.
func TestABackupThatCameMeanwhileStays(t *testing.T) {
	s := alone(t, nil)
	dir := t.TempDir()
	target := filepath.Join(dir, "backup")
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := os.WriteFile(target, []byte("another"), 0o600); err != nil {
			t.Error(err)
		}
		http.Redirect(w, r, s.url+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	defer api.Close()
	_, err := runCommand(t, api.URL, "backup", "-to", newIdentity(t).Recipient().String(), target)
	if err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("%v", err)
	}
	files, _ := os.ReadDir(dir)
	if b, _ := os.ReadFile(target); string(b) != "another" || len(files) != 1 {
		t.Errorf("%q, %d files", b, len(files))
	}
}

// The documentation has the commands as -h prints them.
func TestTheDocumentationHasTheCommands(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(usageLines) {
		if want := "//\t" + strings.Replace(line, "RESTOREARGS", "...", 1); !strings.Contains(string(doc), want) {
			t.Errorf("doc.go lacks %s", want)
		}
	}
	out, err := runCommand(t, "", "-h")
	if want := strings.Count(usageLines, "\n") - 1; err != nil || strings.Count(out, "\n") != want || strings.Contains(out, "restore ") {
		t.Errorf("%v: -h has not %d commands, without restore:\n%s", err, want, out)
	}
	if _, err := runCommand(t, "", "keys", "status"); isUsage(err) { // at Program.Server
		t.Errorf("%v", err)
	}
	var none strings.Builder
	if err := Command(t.Context(), []string{"keys", "status"}, CommandOptions{Stdout: &none}); !isUsage(err) || !strings.Contains(err.Error(), "-server is missing") {
		t.Errorf("%v", err)
	}
}

// Who removes a key by force reads before and after it that data is lost, and where its number is.
func TestRemovalByForceSaysThatDataIsLost(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("{}")) }))
	defer api.Close()
	const id, lost = "00000000-0000-0000-0000-000000000001", "lost"
	for _, tt := range []struct {
		args []string
		says bool
	}{{[]string{"-h"}, true}, {[]string{"-force", id}, true}, {[]string{"-now", id}, false}, {[]string{id}, false}} {
		out, err := runCommand(t, api.URL, append([]string{"keys", "remove"}, tt.args...)...)
		if err != nil || strings.Contains(out, lost) != tt.says || len(tt.args) == 2 && tt.says && !strings.Contains(out, "the log of the leader says how many") {
			t.Errorf("%q: %v, %q", tt.args, err, out)
		}
	}
}
