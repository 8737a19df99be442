package page_test

import (
	"fmt"
	"slices"
	"testing"
)

// shown is what a user sees on the page.
type shown struct {
	Servers  map[string]string // leader, follower, not ready or no answer, by ID
	Keys     []row
	Problems []string
	Said     string // of a click
	Stale    string // that the page is old
	Buttons  []string
}

// row is a key on the page.
type row struct {
	ID, State, Secrets string
	Servers            []string // held, missing or unknown, in the order of the servers' IDs
	Moving             float64  // where the bar of a rekey is, from 0 to 1; -1 is no bar
}

// look is the script that reads the page: an expression whose value is a shown. Text that CSS hides
// is not there for it, as innerText has none.
const look = `(() => {
	const seen = css => [...document.querySelectorAll(css)].filter(e => e.checkVisibility());
	const text = e => e ? e.innerText.trim() : "";
	return {
		servers: Object.fromEntries(seen("#servers th[data-server]").map(e => [e.dataset.server, text(e.querySelector("small"))])),
		keys: seen("#keys tr").map(e => {
			const bar = e.querySelector("progress");
			return {
				id: text(e.querySelector("code")),
				state: text(e.cells[1]).split("\n")[0].trim(),
				secrets: text(e.cells[2]),
				servers: [...e.cells].slice(3).map(text),
				moving: bar ? bar.value / bar.max : -1,
			};
		}),
		problems: seen("#problems li").map(text),
		said: text(document.getElementById("said")),
		stale: text(document.getElementById("stale")),
		buttons: seen("button").map(text),
	};
})()`

// until waits until a condition holds for what the page shows, an expression of JavaScript over p,
// which is a shown. It returns what was seen then.
func (b *browser) until(condition string, args ...any) (out shown) {
	b.t.Helper()
	condition = fmt.Sprintf(condition, args...)
	err := b.call("POST", "/execute/async", map[string]any{"args": []any{}, "script": `
		const done = arguments[0];
		const check = () => { const p = ` + look + `; return (` + condition + `) && p; };
		const now = check();
		if (now) return done(now);
		new MutationObserver((_, observer) => {
			const p = check();
			if (p) { observer.disconnect(); done(p); }
		}).observe(document, { subtree: true, childList: true, characterData: true, attributes: true });`}, &out)
	if err != nil {
		b.script("return "+look, &out)
		b.t.Fatalf("%v\nwaited for %s\nthe page: %+v", err, condition, out)
	}
	return out
}

// all is a condition: each server is there, and has each key.
const all = `Object.values(p.servers).sort().join() == "follower,follower,leader" &&
	p.keys.length > 0 && p.keys.every(k => k.servers.join() == "held,held,held")`

// same fails the test if the page's keys are not those of a status.
func same(t *testing.T, p shown, st status) {
	t.Helper()
	var got []key
	for _, r := range p.Keys {
		k := key{ID: r.ID, State: r.State}
		fmt.Sscan(r.Secrets, &k.Secrets)
		got = append(got, k)
	}
	if !slices.Equal(got, st.Keys) {
		t.Errorf("the page shows the keys %+v, the server has %+v", got, st.Keys)
	}
}

func TestPageWithoutClicks(t *testing.T) {
	t.Parallel()
	s, b := start(t, nil), newBrowser(t)
	t.Run("shows keys and servers", func(t *testing.T) { showsKeysAndServers(t, s.in(t), b.in(t)) })
	t.Run("takes no orders", func(t *testing.T) { takesNoOrders(t, s.in(t), b.in(t)) })
}

func showsKeysAndServers(t *testing.T, s *servers, b *browser) {
	leader, followers := s.roles()
	b.open(s.urls[followers[0]])
	p := b.until(all)
	if p.Servers[leader] != "leader" {
		t.Errorf("the leader is %s, the page shows %v", leader, p.Servers)
	}
	if len(p.Keys) != 1 || p.Keys[0].State != "active" || p.Keys[0].Secrets != "0" {
		t.Errorf("the page shows the keys %+v", p.Keys)
	}
	if len(p.Problems) > 0 || p.Stale != "" {
		t.Errorf("nothing is wrong, the page shows %q %q", p.Problems, p.Stale)
	}
	s.put(5)
	same(t, b.until(`p.keys[0].secrets == "5"`), s.status(leader))

	// Once nothing changes any more, two looks at the servers leave what a user has selected to copy.
	for id := range s.urls {
		s.await(id, "secret", func(st status) bool { return st.Secrets == 5 })
	}
	var selected string
	b.script(`const looks = () => new Promise(done => {
			let looks = 0;
			new PerformanceObserver(seen => (looks += seen.getEntries().length) >= 2 && done()).observe({ type: "resource" });
		});
		await looks();
		getSelection().selectAllChildren(document.querySelector("#keys code"));
		await looks();
		return getSelection().toString();`, &selected)
	if selected != p.Keys[0].ID {
		t.Errorf("selected is %q, want %q", selected, p.Keys[0].ID)
	}
	b.quiet()
}
