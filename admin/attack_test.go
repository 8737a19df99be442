package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"example.com/keyring"
	"example.com/keyring/node"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// requests has one of each kind that the API takes.
var requests = []struct{ method, path, body string }{
	{"GET", "/", ""}, {"GET", "/page.js", ""}, {"GET", "/page.css", ""}, {"GET", "/v1/status", ""}, {"GET", "/v1/cluster", ""},
	{"POST", "/v1/keys", "{}"}, {"DELETE", "/v1/keys/00000000-0000-4000-8000-000000000000?force", ""},
	{"POST", "/v1/keys/00000000-0000-4000-8000-000000000000/adopt", ""}, {"POST", "/v1/rewrap", ""},
	{"POST", "/v1/servers", `{"id":"s4","addr":"10.0.0.4:1"}`}, {"DELETE", "/v1/servers/server", ""},
	{"POST", "/v1/servers/server/promote", ""}, {"POST", "/v1/servers/server/demote", ""}, {"POST", "/v1/leader", "{}"},
	{"GET", "/v1/tokens", ""}, {"POST", "/v1/tokens", `{"id":"s4"}`}, {"DELETE", "/v1/tokens/" + strings.Repeat("0", 32), ""},
	{"POST", "/v1/backup", `{"to":["age1"]}`}, {"POST", "/v1/backup/" + strings.Repeat("0", 64), ""},
	{"GET", "/none", ""}, {"POST", "/v1/status", ""},
}

// untouched is a body that nobody may read.
type untouched struct{ t *testing.T }

func (u untouched) Read([]byte) (int, error) {
	u.t.Error("the body is read")
	return 0, io.EOF
}

// ask has the Handler serve a request.
func ask(h http.Handler, method, path string, body io.Reader, change ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, body)
	for _, f := range change {
		f(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// wantError wants an answer that is an error, in JSON.
func wantError(t *testing.T, what string, w *httptest.ResponseRecorder, status int) {
	t.Helper()
	var e struct{ Error string }
	if err := json.Unmarshal(w.Body.Bytes(), &e); w.Code != status || err != nil || e.Error == "" || w.Header().Get("Content-Type") != "application/json" {
		t.Errorf("%s: %d %v %.200s, want %d", what, w.Code, w.Header(), w.Body, status)
	}
}

func TestNobodyIsLetInByDefault(t *testing.T) {
	s := alone(t, nil)
	if h, err := New(s.node, Config{}); h != nil || err == nil || !strings.Contains(err.Error(), "Authorize") {
		t.Errorf("without Authorize: %v, %v", h, err)
	}
	if h, err := New(nil, Config{Authorize: anybody}); h != nil || err == nil {
		t.Errorf("without a server: %v, %v", h, err)
	}
	asked := 0
	for name, authorize := range map[string]func(*http.Request) (string, error){
		"refused": func(*http.Request) (string, error) { return "root", errors.New("no operator") },
		"nobody":  func(*http.Request) (string, error) { return "", nil },
		"no text": func(*http.Request) (string, error) { return "\xff", nil }, // the audit would have nothing
		"panics":  func(*http.Request) (string, error) { panic("a bug of the host's") },
	} {
		h, err := New(s.node, Config{Buttons: true, Authorize: func(r *http.Request) (string, error) { asked++; return authorize(r) }})
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range requests {
			status := map[string]int{"panics": http.StatusInternalServerError}[name]
			if status == 0 {
				status = http.StatusForbidden
			}
			wantError(t, name+": "+q.method+" "+q.path, ask(h, q.method, q.path, untouched{t}), status)
		}
	}
	if asked != 4*len(requests) || len(s.node.Keyring().Keys()) != 1 || len(s.node.Keyring().JoinTokens()) != 0 {
		t.Errorf("asked %d times, %d keys", asked, len(s.node.Keyring().Keys()))
	}
}

// A browser asks for a password where the host's error says so, also if that is wrapped, and gets nothing before.
func TestUnauthenticatedAsksForAPassword(t *testing.T) {
	const challenge = `Basic realm="kvd"`
	s := alone(t, nil)
	h, err := New(s.node, Config{Authorize: func(r *http.Request) (string, error) {
		if name, password, _ := r.BasicAuth(); name == "alice" && password == "x" {
			return name, nil
		}
		return "root", fmt.Errorf("kvd: %w", Unauthenticated(challenge))
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/v1/status"} {
		w := ask(h, "GET", path, untouched{t})
		if got := w.Header().Get("WWW-Authenticate"); got != challenge {
			t.Errorf("%s: the challenge is %q", path, got)
		}
		wantError(t, path, w, http.StatusUnauthorized)
		w = ask(h, "GET", path, nil, func(r *http.Request) { r.SetBasicAuth("alice", "x") })
		if w.Code != http.StatusOK || w.Header().Get("WWW-Authenticate") != "" {
			t.Errorf("%s, with the password: %d, %v", path, w.Code, w.Header())
		}
	}
}

// What is changed has the name that Authorize has returned.
func TestChangesHaveAnActor(t *testing.T) {
	var mu sync.Mutex // guards actors
	actors := map[keyring.Step]string{}
	s := alone(t, func(_ *Config, conf *node.Config) {
		conf.Audit = func(e keyring.Event) {
			mu.Lock()
			defer mu.Unlock()
			actors[e.Step] = e.Actor
		}
	})
	first := s.node.Keyring().Keys()[0].ID
	c := clientOf(t, s.url)
	_, err := c.Rotate(t.Context(), keyring.RotateOptions{})
	made, err2 := c.Backup(t.Context(), io.Discard, newIdentity(t).Recipient().String())
	if err := errors.Join(err, err2, c.ConfirmBackup(t.Context(), made.SHA256), c.Remove(t.Context(), first, keyring.RemoveOptions{Force: true})); err != nil {
		t.Fatal(err)
	}
	if err := s.node.Close(); err != nil { // all is told
		t.Fatal(err)
	}
	for _, step := range []keyring.Step{keyring.StepAdded, keyring.StepBackup, keyring.StepRemoved} {
		if actors[step] != "tester" {
			t.Errorf("%s is by %q", step, actors[step])
		}
	}
}

// A page of another origin gets nothing, GETs included, and starts nothing. A link to the page works.
func TestNothingForAnotherOrigin(t *testing.T) {
	s := alone(t, func(c *Config, _ *node.Config) { c.Buttons = true })
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	foreign := []func(*http.Request){
		header("Sec-Fetch-Site", "cross-site"), header("Sec-Fetch-Site", "same-site"), header("Origin", "https://evil.example"), header("Origin", "null"),
	}
	for _, from := range foreign {
		for _, q := range requests[1:] {
			for _, method := range []string{q.method, "GET", "HEAD", "OPTIONS"} {
				wantError(t, method+" "+q.path, ask(s, method, q.path, untouched{t}, from), http.StatusForbidden)
			}
		}
		if w := ask(s, "GET", "/", nil, from); w.Code != http.StatusOK {
			t.Errorf("a link to the page: %d", w.Code)
		}
	}
	if n := len(s.node.Keyring().Keys()); n != 1 {
		t.Errorf("%d keys", n)
	}
	if w := ask(s, "POST", "/v1/keys", strings.NewReader("{}"), header("Sec-Fetch-Site", "same-origin")); w.Code != http.StatusOK {
		t.Errorf("the page's own request: %d %s", w.Code, w.Body)
	}
}

// Without Buttons the page, and whoever has made a browser ask as the page does, only look.
func TestThePageOnlyLooks(t *testing.T) {
	s := alone(t, nil)
	browser := func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "same-origin") }
	overHTTP := func(r *http.Request) { r.Header.Set("Origin", "http://"+r.Host) } // where browsers do not send the other one
	for _, by := range []func(*http.Request){browser, overHTTP} {
		for _, q := range requests[:len(requests)-2] {
			w := ask(s, q.method, q.path, strings.NewReader(q.body), by)
			if q.method == "GET" && w.Code != http.StatusOK || q.method != "GET" && w.Code != http.StatusForbidden {
				t.Errorf("%s %s: %d %s", q.method, q.path, w.Code, w.Body)
			}
		}
	}
	for _, name := range []string{"/", "/page.js", "/page.css"} {
		if w := ask(s, "GET", name, nil, browser); strings.Contains(w.Body.String(), `"/v1`) || strings.Contains(w.Body.String(), `="/`) {
			t.Errorf("%s has an absolute path, which no prefix leads to", name)
		}
	}
}

// No answer may be framed, kept, or taken for something else.
func TestEachAnswerIsProtected(t *testing.T) {
	s := alone(t, nil)
	for _, q := range requests {
		h := ask(s, q.method, q.path, strings.NewReader(q.body)).Header()
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Resource-Policy": "same-origin",
		} {
			if h.Get(name) != want {
				t.Errorf("%s %s: %s is %q", q.method, q.path, name, h.Get(name))
			}
		}
		if policy := h.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || !strings.Contains(policy, "frame-ancestors 'none'") {
			t.Errorf("%s %s: the policy is %q", q.method, q.path, policy)
		}
		for name := range h {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s %s: %s", q.method, q.path, name)
			}
		}
	}
}

// Paths are taken as they are: one that another program could read in another way is none, and nothing leads out of the prefix.
func TestOddPathsAreNone(t *testing.T) {
	s := alone(t, nil)
	h := http.StripPrefix("/keyring", s)
	for path, want := range map[string]int{
		"/keyring/": 200, "/keyring/v1/status": 200, "/keyring/%76%31/status": 200,
		"/keyring//": 404, "/keyring//v1/status": 404, "/keyring/v1//status": 404, "/keyring/v1/status/": 404, "/keyring/v1/./status": 404,
		"/keyring/../keyring/v1/status": 404, "/keyring/v1/../v1/status": 404, "/keyring/v1/%2e%2e/v1/status": 404, "/keyring/v1%2Fstatus": 404,
		"/keyring/page.js/": 404, "/keyring/page.js%00": 404, "/keyring/v1\\status": 404, "/keyring": 404, "/keyringv1/status": 404, "/keyring/V1/status": 404,
		"/v1/status": 404,
	} {
		w := ask(h, "GET", path, nil)
		if w.Code != want || w.Header().Get("Location") != "" {
			t.Errorf("%s: %d to %q, want %d", path, w.Code, w.Header().Get("Location"), want)
		}
	}
	for id, text := range map[string]string{"a%2Fb": "a/b", "%2e%2e": "..", "..%2F..%2Fetc": "../../etc"} {
		w := ask(h, "DELETE", "/keyring/v1/servers/"+id, nil)
		if wantError(t, id, w, http.StatusNotFound); !strings.Contains(w.Body.String(), text) || !strings.Contains(w.Body.String(), "not a member") {
			t.Errorf("server %s: %s", id, w.Body)
		}
	}
}

// What there is not has the status of that, and HEAD has no body.
func TestMethods(t *testing.T) {
	s := alone(t, nil)
	for path, allow := range map[string]string{"/": "GET, HEAD", "/v1/status": "GET, HEAD", "/v1/keys": "POST", "/v1/tokens": "GET, HEAD, POST", "/v1/tokens/x": "DELETE"} {
		for _, method := range []string{"PUT", "OPTIONS", "TRACE", "CONNECT", "get", "X"} {
			w := ask(s, method, path, nil)
			if wantError(t, method+" "+path, w, http.StatusMethodNotAllowed); w.Header().Get("Allow") != allow {
				t.Errorf("%s %s: Allow is %q, want %q", method, path, w.Header().Get("Allow"), allow)
			}
		}
	}
	for _, path := range []string{"/", "/v1/status", "/v1/cluster", "/v1/none"} {
		status, body := s.do(t, "HEAD", path, "")
		if want := ask(s, "GET", path, nil).Code; status != want || body != "" {
			t.Errorf("HEAD %s: %d %q", path, status, body)
		}
	}
}

// Of what the host's functions panic nobody hears more than that, and the server goes on.
func TestAPanicOfTheHostsIsNotTheEnd(t *testing.T) {
	var bug bool
	s := alone(t, func(c *Config, _ *node.Config) {
		c.Records = counter(func() int { panic("s3cret") })
		c.Addr = func(raft.ServerID) string { panic("s3cret") }
		c.Client = &http.Client{Transport: transport(func(*http.Request) (*http.Response, error) { panic("s3cret") })}
		c.URLs = func() map[raft.ServerID]string {
			if bug {
				panic("s3cret")
			}
			return map[raft.ServerID]string{"s2": "http://s2"}
		}
	})
	for _, q := range []struct{ method, path, body string }{{"GET", "/v1/status", ""}, {"GET", "/v1/cluster", ""}, {"POST", "/v1/servers", `{"id":"s4"}`}} {
		w := ask(s, q.method, q.path, strings.NewReader(q.body))
		if wantError(t, q.path, w, http.StatusInternalServerError); strings.Contains(w.Body.String(), "s3cret") {
			t.Errorf("%s: %s", q.path, w.Body)
		}
	}
	s.cfg.Records = nil
	w := ask(s, "GET", "/v1/cluster", nil) // of the Transport: it is another goroutine's
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "has panicked") || strings.Contains(w.Body.String(), "s3cret") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	bug = true
	wantError(t, "URLs", ask(s, "GET", "/v1/cluster", nil), http.StatusInternalServerError)
	if w := ask(s, "GET", "/v1/tokens", nil); w.Code != http.StatusOK {
		t.Errorf("the next: %d", w.Code)
	}
}

type transport func(*http.Request) (*http.Response, error)

func (f transport) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Bodies are taken as they are meant, or not at all.
func TestAmbiguousRequestsAreRefused(t *testing.T) {
	s := alone(t, nil)
	for _, body := range []string{
		"", "null", "[]", `"x"`, "{} {}", "{}x", "{}\xff", "\xef\xbb\xbf{}", `{"full":true,"full":false}`, `{"Full":true}`, `{"full":"yes"}`, `{"ful":true}`,
		`{"\u0066ull":true}`, `{"revoke":["x"]}`, `{"publish":"\ud800"}`,
	} {
		wantError(t, body, ask(s, "POST", "/v1/keys", strings.NewReader(body)), http.StatusBadRequest)
	}
	for _, path := range []string{
		"/v1/keys?full", "/v1/keys?full=true", "/v1/servers?id=s4", "/v1/backup?to=x", "/v1/tokens?ttl=1h", "/v1/keys?%", "/v1/keys?a=1;b=2",
	} {
		wantError(t, path, ask(s, "POST", path, strings.NewReader(`{}`)), http.StatusBadRequest)
	}
	key := s.node.Keyring().Keys()[0].ID.String()
	for _, query := range []string{"?force=maybe", "?force=false&force=true", "?now=2", "?forced"} {
		wantError(t, query, ask(s, "DELETE", "/v1/keys/"+key+query, nil), http.StatusBadRequest)
	}
	if keys := s.node.Keyring().Keys(); len(keys) != 1 || slices.ContainsFunc(keys, func(k keyring.Key) bool { return k.Removing }) {
		t.Errorf("%+v", keys)
	}
}

// The log has who has asked for what, and nothing that may be a secret.
func TestChangesAreLogged(t *testing.T) {
	var log bytes.Buffer
	s := alone(t, func(c *Config, _ *node.Config) {
		c.Logger = hclog.New(&hclog.LoggerOptions{Output: &log, DisableTime: true})
	})
	for _, q := range requests {
		ask(s, q.method, q.path, strings.NewReader(q.body))
	}
	token := ask(s, "POST", "/v1/tokens", strings.NewReader(`{"id":"s4"}`)).Body.String()
	ask(s, "DELETE", "/v1/tokens/s3cret?s3cret", strings.NewReader("s3cret"))
	for _, want := range []string{
		`request="POST /v1/keys" by=tester status=200`, `request="POST /v1/tokens" by=tester status=200`, `request="DELETE /v1/tokens/{id}" by=tester status=400`,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in\n%s", want, &log)
		}
	}
	var made struct{ Token string }
	if err := json.Unmarshal([]byte(token), &made); err != nil || made.Token == "" || strings.Contains(log.String(), made.Token) ||
		strings.Contains(log.String(), "s3cret") || strings.Contains(log.String(), "GET") {
		t.Errorf("%v, %q: %s", err, token, &log)
	}
}
