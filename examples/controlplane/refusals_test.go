package main

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"example.com/keyring"
)

// What is wrong with a request about servers and tokens is said with its status: 400 for what is written wrong, 404 for what there
// is none of, 409 for what the members of now do not allow.
func TestRefusalsOfServersAndTokensHaveTheirStatus(t *testing.T) {
	servers := startServers(t, initialized(t, 1), options{}, nil, "s1")
	s := servers["s1"]
	own := s.cluster.Servers["s1"].Raft
	post := func(id, addr string) string {
		b, err := json.Marshal(map[string]string{"id": id, "addr": addr})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	unknown := strings.Repeat("0a", 16)
	for _, tt := range []struct {
		method, path, body string
		status             int
		text               string
	}{
		{"POST", "/v1/servers", post("", "127.0.0.1:7001"), 400, "server ID"},
		{"POST", "/v1/servers", post("s4 ", "127.0.0.1:7001"), 400, "server ID"},
		{"POST", "/v1/servers", post(strings.Repeat("x", 256), "127.0.0.1:7001"), 400, "server ID"},
		{"POST", "/v1/servers", post("s4", ""), 400, "address"},
		{"POST", "/v1/servers", post("s4", "nowhere"), 400, "host:port"},
		{"POST", "/v1/servers", post("s4", "10.0.0.4:70000"), 400, "port"},
		{"POST", "/v1/servers", post("s4", "0.0.0.0:7001"), 400, "host"},
		{"POST", "/v1/servers", post("s4", ":7001"), 400, "host"},
		{"POST", "/v1/servers", post("s4", "300.1:7001"), 400, "host"},
		{"POST", "/v1/servers", post("s4", own), 409, "has the address"},
		{"POST", "/v1/servers", post("s1", "127.0.0.1:1"), 409, "it is the leader"},
		{"DELETE", "/v1/servers/s9", "", 404, "not a member"},
		{"DELETE", "/v1/servers/s1", "", 409, "last voter"},
		{"POST", "/v1/tokens", `{"id":""}`, 400, "server ID"},
		{"POST", "/v1/tokens", `{"id":"s4","ttl":"25h"}`, 400, "at most"},
		{"DELETE", "/v1/tokens/x", "", 400, "32 hexadecimal digits"},
		{"DELETE", "/v1/tokens/" + url.PathEscape(unknown+"0"), "", 400, "32 hexadecimal digits"},
		{"DELETE", "/v1/tokens/" + unknown, "", 404, "there is no such token"},
	} {
		w := ask(s, tt.method, tt.path, tt.body)
		var answer struct{ Error string }
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != tt.status || !strings.Contains(answer.Error, tt.text) {
			t.Errorf("%s %s %s: %d %s, want %d and %q", tt.method, tt.path, tt.body, w.Code, w.Body, tt.status, tt.text)
		}
		if again := keyring.ErrNotMember.Error(); strings.Count(answer.Error, again) > 1 {
			t.Errorf("%s %s: %q says it twice", tt.method, tt.path, answer.Error)
		}
	}
	// What is right is taken still, also twice.
	for range 2 {
		if w := ask(s, "POST", "/v1/servers", post("s1", own)); w.Code != http.StatusOK {
			t.Errorf("as it is: %d %s", w.Code, w.Body)
		}
	}
	w := ask(s, "POST", "/v1/tokens", `{"id":"s4"}`)
	tokens := s.node.JoinTokens()
	if w.Code != http.StatusOK || len(tokens) != 1 {
		t.Fatalf("a token: %d %s, %v", w.Code, w.Body, tokens)
	}
	if w := ask(s, "DELETE", "/v1/tokens/"+tokens[0].ID, ""); w.Code != http.StatusOK {
		t.Errorf("withdrawn: %d %s", w.Code, w.Body)
	}
}
