package node

// When this server's certificates end, for Status and Metrics.

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
)

// certificatesEvery is how often Config.TLS is asked for the certificates of now.
const certificatesEvery = time.Minute

// certificates is what is known of this server's certificates.
type certificates struct {
	mu       sync.Mutex    // held while they are looked at
	ends     []peer.Ending // those that end soon, by the last look
	refused  string        // why others refuse them, by the last look
	problems atomic.Pointer[[]keyring.Problem]
}

// watchCertificates looks at this server's certificates now and then, until ctx ends.
func (n *Node) watchCertificates(ctx context.Context) {
	ticks := time.NewTicker(certificatesEvery)
	defer ticks.Stop()
	for {
		n.lookAtCertificates()
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

// lookAtCertificates looks once. It wakes all who wait for a change of Status if another certificate ends soon, another time has come
// to be the end of one, or others refuse them for another reason.
func (n *Node) lookAtCertificates() {
	n.certificates.mu.Lock()
	defer n.certificates.mu.Unlock()
	base, err := n.cfg.TLS()
	var ends []peer.Ending
	if err == nil {
		ends, err = peer.OwnEndings(base)
	}
	now := clock(base)
	n.giveLeft(now, ends)
	if n.certificates.note(now, ends, err) {
		n.keys.Notify()
	}
}

// note replaces what is known, and reports whether it differs. How much time is left is no difference.
func (c *certificates) note(now time.Time, ends []peer.Ending, err error) (differs bool) {
	ends, refused := slices.DeleteFunc(ends, func(e peer.Ending) bool { return e.Until.Sub(now) >= soon(e) }), ""
	if err != nil {
		ends, refused = nil, err.Error()
	}
	differs = !slices.Equal(ends, c.ends) || refused != c.refused
	problems := certificateProblems(now, ends, err)
	first := c.problems.Swap(&problems) == nil
	c.ends, c.refused = ends, refused
	return differs || first
}

// giveLeft tells Config.Metrics how much time is left.
func (n *Node) giveLeft(now time.Time, ends []peer.Ending) {
	if n.cfg.Metrics == nil {
		return
	}
	for _, e := range ends {
		n.cfg.Metrics.SetGauge("keyring.certificate.left", e.Until.Sub(now).Seconds(), map[string]string{"certificate": nameOf(e)})
	}
}

// clock is the time by which a TLS configuration goes.
func clock(base *tls.Config) time.Time {
	if base != nil && base.Time != nil {
		return base.Time()
	}
	return time.Now()
}

func nameOf(e peer.Ending) string {
	if e.CA {
		return "CA"
	}
	return "own"
}

// certificateProblems are what is wrong with certificates at a time: err says why others refuse them now.
func certificateProblems(now time.Time, ends []peer.Ending, err error) (all []keyring.Problem) {
	if err != nil {
		all = append(all, keyring.Problem{Kind: keyring.ProblemCertificate, Severity: keyring.SeverityCritical, Detail: err.Error()})
	}
	for _, e := range ends {
		if left := e.Until.Sub(now); err == nil && left < soon(e) {
			all = append(all, keyring.Problem{Kind: keyring.ProblemCertificate, Since: e.Until.Add(-soon(e)), Detail: fmt.Sprintf(
				"the %s certificate ends at %s, in %v", nameOf(e), e.Until.UTC().Format(time.DateTime+" UTC"), left.Round(time.Second))})
		}
	}
	return all
}

// soon is how long before the end of a certificate somebody should know of it: two weeks, or a third of its life if that is
// less.
func soon(e peer.Ending) time.Duration {
	return min(14*24*time.Hour, e.Until.Sub(e.From)/3)
}
