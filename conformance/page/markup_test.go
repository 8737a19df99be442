package page_test

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// markup would be an element, and would run a script, if a page took it as HTML.
const markup = `<img src=x onerror="document.title='owned'"><b>`

// impostor answers in the place of a server that is away, as anybody on the machine may who is quick
// to take its port, until the test has ended.
func (s *servers) impostor(id string, status int, answer any) {
	s.t.Helper()
	ln, err := net.Listen("tcp", strings.TrimPrefix(s.urls[id], "http://"))
	if err != nil {
		s.t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(answer)
	}))
	server.Listener.Close()
	server.Listener = ln
	server.Start()
	s.t.Cleanup(server.Close)
}

// What another server says is text on the page, in each of its places.
func TestNothingFromAServerIsMarkup(t *testing.T) {
	t.Parallel()
	s := start(t, nil)
	b := newBrowser(t)
	b.open(s.urls["s1"])
	b.until(all)
	t.Run("policy", func(t *testing.T) { hasPolicy(t, b.in(t)) })
	if !t.Run("path", func(t *testing.T) { pathIsText(t, s.in(t), b.in(t)) }) {
		return // the servers may be away
	}
	b.console() // the page's own server was away

	s.kill("s2") // the impostor's own leader, and so the one whose keys are shown
	s.kill("s3")
	type object = map[string]any
	s.impostor("s2", http.StatusOK, object{
		"id": "s2", "leader": "s2", "ready": true,
		"keys":     []object{{"id": markup, "state": markup, "algorithm": markup, "since": time.Now(), "records": 1}},
		"keks":     []object{{"id": markup, "away": markup}},
		"causes":   []object{{"kind": markup, "severity": markup, "server": markup, "kek": markup, "detail": markup, "advice": markup}},
		"missing":  []string{markup},
		"rekeying": []object{{"key": markup, "moved": 1, "left": 1, "error": markup}},
		"problems": []string{markup},
	})
	s.impostor("s3", http.StatusTeapot, object{"error": markup})

	p := b.until(`p.keys.length == 1 && p.keys[0].id.startsWith("<img") && p.problems.length >= 2`)
	want := row{ID: markup, State: markup, Secrets: "1", Servers: []string{"missing", "missing", "unknown"}, Moving: 0.5} // s1 does not know it
	if got := p.Keys[0]; got.ID != want.ID || !strings.Contains(got.State, markup) || !slices.Equal(got.Servers, want.Servers) || got.Moving != want.Moving {
		t.Errorf("the page shows %+v, want %+v", got, want)
	}
	for _, want := range []string{markup + ": " + markup, "s3: " + s.urls["s3"] + " answers: 418 I'm a teapot: " + markup} {
		if !strings.Contains(strings.Join(p.Problems, "\n"), want) {
			t.Errorf("the page shows the problems %q, not %q", p.Problems, want)
		}
	}
	if text := b.text("#keys td:nth-child(2)"); strings.Count(text, markup) != 2 {
		t.Errorf("the state and the error of its rekey are %q", text)
	}
	hasNoElements(t, b)
	b.quiet()
}

// pathIsText: a user names secrets, and the page has the name of one that does not open any more. All
// servers' disks have to fail at once for that.
func pathIsText(t *testing.T, s *servers, b *browser) {
	leader, _ := s.roles()
	if err := s.putAt(leader, markup); err != nil {
		t.Fatal(err)
	}
	b.until(`p.keys[0].secrets == "1"`)
	for id := range s.urls {
		s.kill(id)
		spoil(t, filepath.Join(s.dir, id))
	}
	for id := range s.urls {
		s.serve(id)
	}
	leader, _ = s.roles()
	s.await(leader, "secret", func(st status) bool { return st.Secrets == 1 })
	s.call(leader, "POST", "/v1/keys", map[string]bool{"full": true}, &key{})
	quoted := strconv.Quote(markup) // as an error has it
	p := b.until(`p.problems.some(text => text.includes(%q))`, quoted)
	if text := b.text("#keys td.rekeying"); !strings.Contains(text, quoted) {
		t.Errorf("the state of the key is %q, the problems %q", text, p.Problems)
	}
	hasNoElements(t, b)
}

// spoil changes the last bytes of a secret in a server's log.
func spoil(t *testing.T, dir string) {
	t.Helper()
	name := filepath.Join(dir, "raft", "raft.db")
	log, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	before := []byte(markup + "\x00\x01") // no Meta, one part, which is short: see package records
	found := 0
	for rest := log; ; found++ {
		at := bytes.Index(rest, before)
		if at < 0 {
			break
		}
		rest = rest[at+len(before):]
		rest[rest[0]] ^= 1
	}
	if found == 0 {
		t.Fatalf("%s does not have the secret", name)
	}
	if err := os.WriteFile(name, log, 0o600); err != nil {
		t.Fatal(err)
	}
}

// hasNoElements fails the test if the page has an element that only markup could have made.
func hasNoElements(t *testing.T, b *browser) {
	t.Helper()
	var elements int
	b.script(`return document.querySelectorAll("img, b").length`, &elements)
	if elements > 0 {
		t.Errorf("%d elements were made of text", elements)
	}
}

// hasPolicy: even if the page made markup of something, nothing would be loaded, and no other page
// frames it.
func hasPolicy(t *testing.T, b *browser) {
	var answer struct{ Policy, Type string }
	b.script(`const r = await fetch("/");
		return { policy: r.headers.get("Content-Security-Policy"), type: r.headers.get("Content-Type") }`, &answer)
	for _, directive := range []string{"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'"} {
		if !strings.Contains(answer.Policy, directive) {
			t.Errorf("the policy is %q, without %q", answer.Policy, directive)
		}
	}
	if answer.Type != "text/html; charset=utf-8" {
		t.Errorf("the page's type is %q", answer.Type)
	}
	b.quiet()
	// Enforced, not just sent.
	var violated string
	b.script(`const said = new Promise(done => document.addEventListener("securitypolicyviolation", e => done(e.effectiveDirective)));
		new Image().src = "/picture";
		return said;`, &violated)
	if violated != "img-src" {
		t.Errorf("a picture violates %q", violated)
	}
	b.console() // has it too
}
