package page_test

import (
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestServerAway(t *testing.T) {
	t.Parallel()
	s, b := start(t, nil), newBrowser(t)
	t.Run("another", func(t *testing.T) { anotherAway(t, s.in(t), b.in(t)) })
	t.Run("the page's own", func(t *testing.T) { ownAway(t, s.in(t), b.in(t)) })
	t.Run("the page's own hangs", func(t *testing.T) { ownHangs(t, s.in(t), b.in(t)) })
}

func anotherAway(t *testing.T, s *servers, b *browser) {
	leader, followers := s.roles()
	watcher, victim := followers[0], followers[1]
	b.open(s.urls[watcher])
	b.until(all)
	column := slices.Index([]string{"s1", "s2", "s3"}, victim)

	// A follower: its own column says so, and no other.
	s.kill(victim)
	p := b.until(`p.servers.%s == "no answer"`, victim)
	for i, cell := range p.Keys[0].Servers {
		if (cell == "unknown") != (i == column) {
			t.Errorf("%s is away, the page shows %q", victim, p.Keys[0].Servers)
		}
	}
	if p.Servers[leader] != "leader" || p.Servers[watcher] != "follower" {
		t.Errorf("%s is away, the page shows %v", victim, p.Servers)
	}
	if !slices.ContainsFunc(p.Problems, func(p string) bool { return strings.Contains(p, "controlplane serve "+s.dir+" "+victim) }) {
		t.Errorf("%s is away, the problems are %q", victim, p.Problems)
	}
	s.serve(victim)
	b.until(all+` && p.servers.%s == "follower" && p.problems.length == 0`, victim)

	// The leader: another one is marked.
	s.kill(leader)
	b.until(`p.servers.%s == "no answer" && Object.values(p.servers).filter(how => how == "leader").length == 1`, leader)
	s.serve(leader)
	b.until(all + ` && p.problems.length == 0`)
	b.quiet() // the page's own server has always answered
}

// ownAway: when the page's own server is away, the page says that what it shows is old, and goes on by itself
// when the server is back.
func ownAway(t *testing.T, s *servers, b *browser) {
	_, followers := s.roles()
	own := followers[0]
	b.open(s.urls[own])
	before := b.until(all)

	s.kill(own)
	p := b.until(`p.stale != ""`)
	if p.Stale != "This page is out of date: this server does not answer." {
		t.Errorf("the page says %q", p.Stale)
	}
	if !slices.EqualFunc(p.Keys, before.Keys, func(a, b row) bool { return a.ID == b.ID }) {
		t.Errorf("the page had the keys %+v, now %+v", before.Keys, p.Keys)
	}
	s.put(3)
	s.serve(own)
	b.until(all + ` && p.stale == "" && p.keys[0].secrets == "3" && p.problems.length == 0`)
	b.quiet(s.urls[own] + "/v1/cluster")
}

// ownHangs: a server that takes requests and never answers is as good as away. The page says so, and
// goes on when the server does.
func ownHangs(t *testing.T, s *servers, b *browser) {
	_, followers := s.roles()
	own := followers[0]
	b.open(s.urls[own])
	b.until(all)
	process := s.running[own].Process
	if err := process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	b.until(`p.stale.startsWith("This page is out of date: this server does not answer")`)
	if err := process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	b.until(all + ` && p.stale == ""`)
	b.quiet(s.urls[own] + "/v1/cluster")
}
