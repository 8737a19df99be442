package node

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
)

// TestCertificatesThatEndSoonAreAProblem two weeks before, or when a third of their life is left, and one that others
// refuse now is a critical one.
func TestCertificatesThatEndSoonAreAProblem(t *testing.T) {
	const day = 24 * time.Hour
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	year, hour := peer.Ending{From: from, Until: from.Add(365 * day)}, peer.Ending{From: from, Until: from.Add(time.Hour)}
	ca := peer.Ending{CA: true, From: from, Until: from.Add(100 * day)}
	for _, tt := range []struct {
		name string
		at   time.Duration
		ends []peer.Ending
		err  error
		want keyring.Severity
		text string
	}{
		{name: "a year, 15 days before", at: 350 * day, ends: []peer.Ending{year}},
		{name: "a year, 13 days before", at: 352 * day, ends: []peer.Ending{year}, want: "", text: "the own certificate ends at 2027-01-01"},
		{name: "an hour, half of it over", at: 30 * time.Minute, ends: []peer.Ending{hour}},
		{name: "an hour, 15 minutes left", at: 45 * time.Minute, ends: []peer.Ending{hour}, text: "in 15m0s"},
		{name: "the CA's", at: 90 * day, ends: []peer.Ending{year, ca}, text: "the CA certificate"},
		{name: "refused", at: 366 * day, ends: []peer.Ending{year}, err: errors.New("own certificate expired"), want: keyring.SeverityCritical, text: "expired"},
	} {
		ps := certificateProblems(from.Add(tt.at), tt.ends, tt.err)
		if (len(ps) > 0) != (tt.text != "") {
			t.Errorf("%s: %v", tt.name, ps)
			continue
		}
		if tt.text != "" && (len(ps) != 1 || ps[0].Severity != tt.want || !strings.Contains(ps[0].Detail, tt.text)) {
			t.Errorf("%s: %+v", tt.name, ps)
		}
	}
}

// TestChangeOfCertificatesIsNoticed: another certificate that ends soon, another end, another reason to refuse it. How much time
// is left is no change.
func TestChangeOfCertificatesIsNoticed(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	own, ca := peer.Ending{From: from, Until: from.Add(time.Hour)}, peer.Ending{CA: true, From: from, Until: from.Add(time.Hour)}
	renewed := peer.Ending{From: from.Add(-time.Hour), Until: from.Add(61 * time.Minute)}
	long := peer.Ending{From: from, Until: from.Add(1000 * time.Hour)}
	var c certificates
	for i, step := range []struct {
		what string
		ends []peer.Ending
		err  error
		want bool
	}{
		{"the first look", []peer.Ending{own}, nil, true},
		{"the same", []peer.Ending{own}, nil, false},
		{"the CA's in place of it", []peer.Ending{ca, long}, nil, true},
		{"another that ends later", []peer.Ending{renewed}, nil, true},
		{"it is refused", []peer.Ending{renewed}, errors.New("another CA"), true},
		{"it is refused for another reason", []peer.Ending{renewed}, errors.New("not for servers"), true},
		{"the same", []peer.Ending{renewed}, errors.New("not for servers"), false},
		{"one that is long good", []peer.Ending{long}, nil, true},
		{"the same", []peer.Ending{long}, nil, false},
	} {
		if got := c.note(from.Add(50*time.Minute+time.Duration(i)*time.Second), slices.Clone(step.ends), step.err); got != step.want {
			t.Errorf("step %d, %s: changed is %v", i, step.what, got)
		}
	}
}

// TestCloseGivesUpAConfigTLSThatHangs where the certificates are looked at, and says so.
func TestCloseGivesUpAConfigTLSThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		back := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		n := &Node{cancel: cancel, cfg: Config{TLS: func() (*tls.Config, error) { <-back; return nil, errors.New("no certificate") }}}
		n.certificates.problems.Store(&[]keyring.Problem{{}})
		n.certificates.refused = "no certificate" // so that nobody is to be told, for there is no keyring
		n.loops.Go(func() { n.watchCertificates(ctx) })
		synctest.Wait()
		began := time.Now()
		err := n.Close()
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "Config.TLS") || took > 11*time.Second {
			t.Errorf("Close took %v: %v", took, err)
		}
		close(back)
		synctest.Wait() // the test fails if a goroutine is left
	})
}
