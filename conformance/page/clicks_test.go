package page_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// clicks are the flags of servers whose pages may rotate.
var clicks = map[string][]string{"s1": {"-clicks"}, "s2": {"-clicks"}, "s3": {"-clicks"}}

func TestPageWithClicks(t *testing.T) {
	t.Parallel()
	s, b := start(t, clicks), newBrowser(t)
	t.Run("rotates", func(t *testing.T) { rotates(t, s.in(t), b.in(t)) })
	t.Run("not for another origin", func(t *testing.T) { notForAnotherOrigin(t, s.in(t), b.in(t)) })
}

func rotates(t *testing.T, s *servers, b *browser) {
	const secrets = 20
	leader, followers := s.roles()
	s.put(secrets)
	b.open(s.urls[followers[0]])
	first := b.until(all+` && p.keys[0].secrets == "%d"`, secrets).Keys[0].ID

	b.click("#rotate")
	p := b.until(all + ` && p.keys.length == 2 && p.said.endsWith("is active.")`)
	if p.Keys[0].State != "active" || p.Keys[1].ID != first || p.Keys[1].State != "inactive" {
		t.Errorf("after Rotate the page shows %+v", p.Keys)
	}
	if want := "The key " + p.Keys[0].ID + " is active."; p.Said != want {
		t.Errorf("the page says %q, want %q", p.Said, want)
	}
	same(t, p, s.status(leader)) // the secrets are where they were

	// It can hurt, so it asks, and the key that is hit by chance cancels.
	b.click("#full")
	var focus string
	b.script(`document.activeElement.click(); return document.activeElement.id + document.getElementById("ask").open`, &focus)
	if focus != "fullfalse" || len(s.status(leader).Keys) != 2 {
		t.Errorf("after the focused button, the focus and the dialog are %q", focus)
	}
	b.click("#full")
	b.click("#yes")
	p = b.until(all + ` && p.keys.map(k => k.state).join() == "active,deprecated,deprecated"`)
	for i, want := range []string{fmt.Sprint(secrets), "0", "0"} {
		if p.Keys[i].Secrets != want {
			t.Errorf("after a full rotation the key %s has %s secrets, want %s", p.Keys[i].ID, p.Keys[i].Secrets, want)
		}
	}
	same(t, p, s.status(leader))
	b.quiet()
}

// takesNoOrders: the page of a server without -clicks has no buttons, and the server takes no orders
// of it, however they are given.
func takesNoOrders(t *testing.T, s *servers, b *browser) {
	leader, followers := s.roles()
	for _, id := range []string{leader, followers[0]} {
		b.open(s.urls[id])
		if p := b.until(all); len(p.Buttons) > 0 {
			t.Errorf("the page of %s has the buttons %q", id, p.Buttons)
		}
		// What the click would have sent, and the click itself.
		var answer struct {
			Status int
			Body   string
		}
		b.script(`const r = await fetch("/v1/keys", { method: "POST", body: "{}" });
			return { status: r.status, body: await r.text() };`, &answer)
		if answer.Status != http.StatusForbidden || !strings.Contains(answer.Body, "is read-only") {
			t.Errorf("a POST by the page of %s: %+v", id, answer)
		}
		b.script(`document.getElementById("rotate").click()`, nil)
		if p := b.until(`p.said.startsWith("Not rotated: ")`); !strings.Contains(p.Said, "is read-only") {
			t.Errorf("a click says %q", p.Said)
		}
		if st := s.status(leader); len(st.Keys) != 1 {
			t.Errorf("the page of %s has rotated: %+v", id, st.Keys)
		}
		b.quiet(s.urls[id] + "/v1/keys")
	}
}

// notForAnotherOrigin: a page of another origin can't rotate, even where clicks are allowed. A form
// with a text body needs no leave of the server that it is for, and a fetch without CORS needs none
// either.
func notForAnotherOrigin(t *testing.T, s *servers, b *browser) {
	leader, _ := s.roles()
	before := s.status(leader).Keys
	target := s.urls[leader] + "/v1/keys"
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<!doctype html><link rel="icon" href="data:,">
			<form method="post" enctype="text/plain" action="%s" target="answer"><input type="hidden" name="{}"><button>Win</button></form>
			<iframe name="answer"></iframe>`, target)
	}))
	defer other.Close()
	b.open(other.URL)

	var sent string
	b.script(fmt.Sprintf(`return fetch(%q, { method: "POST", mode: "no-cors", body: "{}" }).then(r => r.type, e => e.name);`, target), &sent)
	if sent != "TypeError" { // the request was made, its answer is not for the page, not even an opaque one
		t.Errorf("fetch: the answer is %q", sent)
	}
	var refused string
	b.script(fmt.Sprintf(`return fetch(%q, { method: "POST", body: "{}" }).then(() => "an answer", e => e.name);`, target), &refused)
	if refused != "TypeError" {
		t.Errorf("fetch with CORS: %s", refused)
	}
	b.script(`const loaded = new Promise(done => document.querySelector("iframe").onload = done);
		document.querySelector("button").click();
		await loaded;`, nil)
	b.enter("iframe")
	var status int
	b.script(`return performance.getEntriesByType("navigation")[0].responseStatus;`, &status)
	if text := b.text("body"); status != http.StatusForbidden || !strings.Contains(text, "cross-origin") {
		t.Errorf("the form's answer is %d %q", status, text)
	}
	if failed := b.console(); len(failed) == 0 { // what quiet reads
		t.Error("three requests have failed, and the console has nothing")
	}
	if st := s.status(leader); !slices.Equal(st.Keys, before) {
		t.Errorf("another origin has rotated: %+v", st.Keys)
	}

	// The fetches' body does rotate where nothing refuses it, so the refusals were not for its form.
	resp, err := http.Post(target, "text/plain", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the same body from a program: %s %s, %v", resp.Status, body, err)
	}
	if st := s.status(leader); slices.Equal(st.Keys, before) {
		t.Errorf("the same body from a program has not rotated: %+v", st.Keys)
	}
}
