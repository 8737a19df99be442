package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// A parameter that says false is false, in each place that has one.
func TestAParameterThatIsFalseIsFalse(t *testing.T) {
	s, c := alone(t, nil)
	var e entry
	if err := c.call(t.Context(), "PUT", "/v1/secrets/a", putRequest{Value: "x"}, &e); err != nil {
		t.Fatal(err)
	}
	if status, body := c.do(t, "POST", "/v1/keys", "", `{}`); status != 200 {
		t.Fatal(status, body)
	}
	before := s.store.View().Index()
	for _, test := range []struct {
		method, path string
		status       int
	}{
		{"DELETE", "/v1/keys/" + e.Key + "?force=maybe", 400},
		{"DELETE", "/v1/keys/" + e.Key + "?force=false&force=true", 400},
		{"DELETE", "/v1/keys/" + e.Key + "?now=2", 400},
		{"DELETE", "/v1/keys/" + e.Key + "?forced", 400},
		{"DELETE", "/v1/keys/" + e.Key + "?force=%", 400},
		{"DELETE", "/v1/servers/server?force=maybe", 400},
		{"DELETE", "/v1/tokens/x?force", 400},
		{"PUT", "/v1/secrets/a?if=0", 400}, // it belongs into the body
		{"POST", "/v1/keys?full", 400},
		{"POST", "/v1/backup?to=x", 400},
		{"POST", "/v1/backup/" + strings.Repeat("0", 64) + "?force", 400},
		{"GET", "/v1/watch?consistent", 400},
		{"GET", "/v1/secrets/a?stale=maybe", 400},
		{"GET", "/v1/secrets?prefx=a", 400},
		{"GET", "/v1/status?consistent=maybe", 400},
		{"GET", "/v1/status?consistent=false", 200},
		{"GET", "/v1/secrets/a?stale=false", 200},
		{"GET", "/v1/secrets/a?stale=true", 200},
		{"DELETE", "/v1/keys/" + e.Key + "?force=false&now=false", 200}, // it moves what is sealed
		{"GET", "/v1/secrets/a", 200},
	} {
		if status, body := c.do(t, test.method, test.path, "", `{}`); status != test.status {
			t.Errorf("%s %s: %d %s, want %d", test.method, test.path, status, body, test.status)
		}
	}
	if s.store.View().Index() == before {
		t.Error("nothing has moved: was the key removed by force?")
	}
}

// The token of one workload reads nothing of another, whatever their names begin with.
func TestAWorkloadHasNoOtherBelowIt(t *testing.T) {
	s, c := alone(t, nil)
	for _, name := range []string{"team%2Fweb", "team/web", "", ".", "%2E%2E", "a%00%2Fb"} {
		if status, body := c.do(t, "POST", "/v1/identities/"+name, "", `{}`); status == 200 {
			t.Errorf("%q has a token: %s", name, body)
		}
	}
	for _, sub := range []string{"workload/team/web", "workload/", "workload", "team"} { // of an older build, or another issuer of ours
		token, err := s.node.Sign(t.Context(), map[string]any{"sub": sub, "aud": audience})
		if err != nil {
			t.Fatal(err)
		}
		if status, body := c.do(t, "GET", "/v1/whoami", token, ""); status != http.StatusUnauthorized {
			t.Errorf("sub %q: %d %s", sub, status, body)
		}
	}
}

// counted counts the entries of the log that are the store's. The keyring makes others, at times of its own.
type counted struct {
	store
	entries atomic.Int64
}

func (c *counted) Apply(l *raft.Log) any {
	c.entries.Add(1)
	return c.store.Apply(l)
}

// A page of another origin gets nothing, GETs included, and makes no entries of the log and no keys.
func TestNothingForAPageOfAnotherOrigin(t *testing.T) {
	var log *counted
	s, _ := alone(t, func(s *server, conf *node.Config) {
		s.clicks = true
		log = &counted{store: s.store}
		conf.App = log
	})
	put := func() {
		if w := ask(s, "PUT", "/v1/secrets/a", `{"value":"hunter2"}`); w.Code != 200 {
			t.Fatal(w.Code, w.Body)
		}
	}
	put()
	site := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	ended, end := context.WithCancel(t.Context())
	end() // a stream that is not refused ends with it
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"} {
		for _, path := range []string{"/v1/secrets/a", "/v1/secrets", "/v1/status", "/v1/cluster", "/v1/watch", "/v1/tokens", "/v1/keys", "/v1/whoami", "/page.js", "/none"} {
			for _, from := range []func(*http.Request){
				site("Sec-Fetch-Site", "cross-site"), site("Sec-Fetch-Site", "same-site"),
				site("Origin", "https://evil.example"), site("Origin", "http://127.0.0.1:8002"), site("Origin", "null"),
			} {
				w := ask(s, method, path, "{}", from, func(r *http.Request) { *r = *r.WithContext(ended) })
				if w.Code != http.StatusForbidden || strings.Contains(w.Body.String(), "hunter2") || !strings.Contains(w.Body.String(), `"error"`) {
					t.Errorf("%s %s: %d %s", method, path, w.Code, w.Body)
				}
			}
		}
	}
	put()
	if n, keys := log.entries.Load(), s.node.Keyring().Keys(); n != 2 || len(keys) != 1 {
		t.Errorf("they have made %d entries, and there are %d keys", n-2, len(keys))
	}
}

// Own requests of the page, navigation to it, and relying parties are none of those.
func TestWhatABrowserMayAskFor(t *testing.T) {
	s, _ := alone(t, nil)
	for _, test := range []struct{ path, site string }{
		{"/", "cross-site"}, {"/", "none"}, {"/v1/status", "same-origin"}, {"/v1/secrets", "none"},
		{"/.well-known/jwks.json", "cross-site"},
	} {
		w := ask(s, "GET", test.path, "", func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", test.site) })
		if w.Code != http.StatusOK || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s from %s: %d %v %s", test.path, test.site, w.Code, w.Header(), w.Body)
		}
	}
}

// A body is one JSON object in UTF-8, without ambiguities. What is refused is not stored.
func TestBodiesAreTakenAsTheyAreMeantOrNotAtAll(t *testing.T) {
	s, c := alone(t, nil)
	for body, good := range map[string]bool{
		`{"value":"x"}`: true, " {\"value\":\"x\"}\r\n": true, `{"value":""}`: true, `{"value":"\ud83d\ude00 \\ud800 é"}`: true,
		``: false, `{}`: false, `null`: false, `[]`: false, `"x"`: false, `{"value":null}`: false, `{"value":1}`: false,
		"{\"value\":\"\xff\"}": false, "{\"value\":\"x\"}\xff": false, "\xef\xbb\xbf{\"value\":\"x\"}": false,
		`{"value":"x"}{"value":"y"}`: false, `{"value":"x"} x`: false, `{"value":"x"}]`: false, "{\"value\":\"x\"}=\r\n": false,
		`{"value":"x","value":"y"}`: false, `{"value":"x","Value":"y"}`: false, `{"value":"x","other":1}`: false,
		`{"value":"\ud800"}`: false, `{"value":"\udc00"}`: false, `{"value":"\ud83d\u0041"}`: false, `{"value":"\\\ud800x"}`: false,
	} {
		status, answer := c.do(t, "PUT", "/v1/secrets/a", "", body)
		if (status == 200) != good || status != 200 && status != 400 {
			t.Errorf("%q: %d %s", body, status, answer)
		}
	}
	for _, path := range []string{"/v1/keys", "/v1/servers", "/v1/tokens", "/v1/backup", "/v1/identities/web"} {
		for _, body := range []string{"", "null", "{} {}", "{}\xff", "{\"\xff\":1}"} {
			if status, answer := c.do(t, "POST", path, "", body); status != 400 {
				t.Errorf("POST %s %q: %d %s", path, body, status, answer)
			}
		}
	}
	if n := len(s.node.Keyring().Keys()); n != 1 {
		t.Errorf("%d keys", n)
	}
}

// Each refusal has a text, also where there is nothing.
func TestEachErrorHasAText(t *testing.T) {
	s, _ := alone(t, nil)
	for _, test := range []struct {
		method, path, allow string
		status              int
	}{
		{"GET", "/none", "", 404}, {"POST", "/v1", "", 404}, {"GET", "/v1/keys", "POST", 405}, {"DELETE", "/v1/status", "GET, HEAD", 405},
	} {
		w := ask(s, test.method, test.path, "")
		var e struct{ Error string }
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Error == "" || w.Code != test.status || w.Header().Get("Allow") != test.allow {
			t.Errorf("%s %s: %d %v %s", test.method, test.path, w.Code, w.Header(), w.Body)
		}
	}
}

// TestAPIListensOnLoopbackAlone: it has no passwords.
func TestAPIListensOnLoopbackAlone(t *testing.T) {
	for addr, want := range map[string]bool{
		"127.0.0.1:0": true, "0.0.0.0:0": false, ":0": false, "10.0.0.1:0": false, "[::]:0": false, "localhost:0": false, "127.0.0.1": false,
	} {
		ln, err := listenLoopback(addr)
		if (err == nil) != want {
			t.Errorf("%s: %v", addr, err)
		}
		if err == nil {
			ln.Close()
		}
	}
}
