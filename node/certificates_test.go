package node

import (
	"context"
	"crypto/tls"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// TestCertificatesThatEndSoonAreAProblem two weeks before, or when a third of their life is left.
func TestCertificatesThatEndSoonAreAProblem(t *testing.T) {
	const day = 24 * time.Hour
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	year, hour := peer.Ending{From: from, Until: from.Add(365 * day)}, peer.Ending{From: from, Until: from.Add(time.Hour)}
	for _, tt := range []struct {
		name string
		at   time.Duration
		end  peer.Ending
		soon bool
	}{
		{"a year, 15 days before", 350 * day, year, false},
		{"a year, 13 days before", 352 * day, year, true},
		{"an hour, half of it over", 30 * time.Minute, hour, false},
		{"an hour, 15 minutes left", 45 * time.Minute, hour, true},
	} {
		if got := endsSoon(tt.end, from.Add(tt.at)); got != tt.soon {
			t.Errorf("%s: it ends soon is %v", tt.name, got)
		}
	}
	ca := peer.Ending{CA: true, From: from, Until: from.Add(100 * day)}
	for _, tt := range []struct {
		found    outlook
		severity keyring.Severity
		server   raft.ServerID
		text     string
	}{
		{outlook{ends: []peer.Ending{hour}}, "", "", "the own certificate ends at 2026-01-01 01:00:00 UTC, in 15m0s"},
		{outlook{ends: []peer.Ending{ca}}, "", "", "the CA certificate ends at 2026-04-11"},
		{outlook{others: map[raft.ServerID]peer.Ending{"s2": hour}}, "", "s2", "the certificate that it shows ends at 2026-01-01 01:00:00 UTC"},
		{outlook{refused: "own certificate expired"}, keyring.SeverityCritical, "", "own certificate expired"},
	} {
		ps := certificateProblems(from.Add(45*time.Minute), tt.found)
		if len(ps) != 1 || !ps[0].Since.IsZero() || ps[0].Severity != tt.severity || ps[0].Server != tt.server || !strings.Contains(ps[0].Detail, tt.text) {
			t.Errorf("%q: %+v", tt.text, ps)
		}
	}
}

// TestOnlyTheLeaderTellsOfOthersCertificates: who led before no longer looks at them.
func TestOnlyTheLeaderTellsOfOthersCertificates(t *testing.T) {
	var c certificates
	end := peer.Ending{From: time.Unix(0, 0), Until: time.Unix(3600, 0)}
	c.note(time.Unix(3000, 0), outlook{ends: []peer.Ending{end}, others: map[raft.ServerID]peer.Ending{"s2": end}})
	if ps := c.problemsOf(true); len(ps) != 2 {
		t.Errorf("the leader tells of %v", ps)
	}
	if ps := c.problemsOf(false); len(ps) != 1 || ps[0].Server != "" {
		t.Errorf("a follower tells of %v", ps)
	}
}

// TestOwnCertificateIsHeldAgainstTheClockOfNow: a clock that was set back or ahead since the last look is told of at once.
func TestOwnCertificateIsHeldAgainstTheClockOfNow(t *testing.T) {
	own := peer.Ending{From: time.Unix(7200, 0), Until: time.Unix(1e9, 0)}
	for at, want := range map[time.Time]string{
		time.Unix(9000, 0): "", time.Unix(0, 0): "own certificate is valid from 1970-01-01 02:00:00 UTC to 2001-09-09 01:46:40 UTC, and by the clock here it is 1970-01-01 00:00:00 UTC",
		time.Unix(2e9, 0): "by the clock here it is 2033-05-18 03:33:20 UTC",
	} {
		var c certificates
		c.note(time.Unix(9000, 0), outlook{own: own, clock: func() time.Time { return at }})
		switch ps := c.problemsOf(false); {
		case want == "" && len(ps) > 0:
			t.Errorf("%v: %+v", at, ps)
		case want != "" && (len(ps) != 1 || ps[0].Severity != keyring.SeverityCritical || !strings.Contains(ps[0].Detail, want)):
			t.Errorf("%v: %+v, want %q", at, ps, want)
		}
	}
}

// TestChangeOfCertificatesIsNoticed: another certificate that ends soon, another end, another reason to refuse it. How much time
// is left is no change.
func TestChangeOfCertificatesIsNoticed(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	own, ca := peer.Ending{From: from, Until: from.Add(time.Hour)}, peer.Ending{CA: true, From: from, Until: from.Add(time.Hour)}
	renewed := peer.Ending{From: from.Add(-time.Hour), Until: from.Add(61 * time.Minute)}
	others := func(id raft.ServerID, e peer.Ending) outlook {
		return outlook{others: map[raft.ServerID]peer.Ending{id: e}}
	}
	var c certificates
	for i, step := range []struct {
		what string
		now  outlook
		want bool
	}{
		{"the first look", outlook{ends: []peer.Ending{own}}, true},
		{"the same", outlook{ends: []peer.Ending{own}}, false},
		{"the CA's in place of it", outlook{ends: []peer.Ending{ca}}, true},
		{"another that ends later", outlook{ends: []peer.Ending{renewed}}, true},
		{"it is refused", outlook{refused: "another CA"}, true},
		{"it is refused for another reason", outlook{refused: "not for servers"}, true},
		{"the same", outlook{refused: "not for servers"}, false},
		{"another server's", others("s2", own), true},
		{"the same", others("s2", own), false},
		{"it has another", others("s2", renewed), true},
		{"another server's", others("s3", renewed), true},
		{"none", outlook{}, true},
		{"none", outlook{}, false},
	} {
		if got := c.note(from.Add(50*time.Minute+time.Duration(i)*time.Second), step.now); got != step.want {
			t.Errorf("step %d, %s: changed is %v", i, step.what, got)
		}
	}
}

// TestConfigTLSThatHangs is named by Status, and Close gives it up and says so.
func TestConfigTLSThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		n := newNode(Config{TLS: func() (*tls.Config, error) { <-back; return nil, errors.New("no certificate") }}, cancel)
		n.certificates.told.Store(&told{problems: []keyring.Problem{{}}})
		n.certificates.last.refused = "no certificate" // so that nobody is to be told, for there is no keyring
		n.loops.Go(func() { n.watchCertificates(ctx) })
		time.Sleep(tlsPatience - time.Nanosecond)
		if ps := n.hangs(); len(ps) > 0 {
			t.Errorf("early: %v", ps)
		}
		time.Sleep(time.Nanosecond)
		ps := n.hangs()
		if len(ps) != 1 || ps[0].Kind != keyring.ProblemHost || !strings.HasPrefix(ps[0].Detail, "Config.TLS has not returned since 2000-01-01 00:00:00 UTC") {
			t.Errorf("after %v: %v", tlsPatience, ps)
		}
		began := time.Now()
		err := n.Close()
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "Config.TLS") || took > 11*time.Second {
			t.Errorf("Close took %v: %v", took, err)
		}
		close(back)
		synctest.Wait() // the test fails if a goroutine is left
		if ps := n.hangs(); len(ps) > 0 {
			t.Errorf("it has returned: %v", ps)
		}
	})
}
