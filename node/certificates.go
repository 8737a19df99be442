package node

// When this server's certificates end and, on the leader, those of the others: for Status and Metrics.

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// certificatesEvery is how often Config.TLS is asked for the certificates of now.
const certificatesEvery = time.Minute

// certificates is what is known of certificates.
type certificates struct {
	mu   sync.Mutex // held while they are looked at
	last outlook    // by the last look
	told atomic.Pointer[told]
}

// told is what is told of the last look. A clock that is set wrong is no change of a certificate: whether the own one is in its time
// is seen when somebody asks, not at the next look.
type told struct {
	problems []keyring.Problem
	own      peer.Ending // zero if others refuse it for another reason, or if it is not known
	clock    func() time.Time
}

// outlook is what a look at certificates has found that somebody is to know of.
type outlook struct {
	ends    []peer.Ending                 // of this server's own, those that end soon
	refused string                        // why others refuse its own; empty if they do not
	others  map[raft.ServerID]peer.Ending // on the leader: of the other servers', those that end soon
	own     peer.Ending                   // of this server's own, while nothing says that others refuse it
	clock   func() time.Time              // of Config.TLS
}

func (o outlook) equal(other outlook) bool {
	return slices.Equal(o.ends, other.ends) && o.refused == other.refused && maps.Equal(o.others, other.others)
}

// watchCertificates looks at certificates now and then, until ctx ends.
func (n *Node) watchCertificates(ctx context.Context) {
	ticks := time.NewTicker(certificatesEvery)
	defer ticks.Stop()
	for {
		n.lookAtCertificates(ctx)
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

// lookAtCertificates looks once. It wakes all who wait for a change of Status if another certificate ends soon, another time has come
// to be the end of one, or others refuse this server's for another reason.
func (n *Node) lookAtCertificates(ctx context.Context) {
	n.certificates.mu.Lock()
	defer n.certificates.mu.Unlock()
	base, err := n.cfg.TLS()
	var ends []peer.Ending
	if err == nil {
		ends, err = peer.OwnEndings(base)
	}
	now := clock(base)
	n.giveLeft(now, ends)
	found := outlook{clock: func() time.Time { return clock(base) }}
	if len(ends) > 0 && !ends[0].CA {
		found.own = ends[0]
	}
	found.ends = slices.DeleteFunc(ends, func(e peer.Ending) bool { return !endsSoon(e, now) })
	if err != nil {
		found = outlook{refused: err.Error()}
	} else if n.isLeader() {
		found.others = n.othersEndings(ctx, now)
	}
	if n.certificates.note(now, found) {
		n.keys.Notify()
	}
}

// note replaces what is known, and reports whether it differs. How much time is left is no difference.
func (c *certificates) note(now time.Time, found outlook) (differs bool) {
	differs = !found.equal(c.last)
	problems := certificateProblems(now, found)
	first := c.told.Swap(&told{problems, found.own, found.clock}) == nil
	c.last = found
	return differs || first
}

// othersEndings are those of the other members' certificates that end soon. A connection shows what its server had when the
// connection was made, so such a server is connected to once more.
func (n *Node) othersEndings(ctx context.Context, now time.Time) map[raft.ServerID]peer.Ending {
	all := map[raft.ServerID]peer.Ending{}
	port := n.cluster.Port()
	for server, e := range port.PeerEndings() {
		id := raft.ServerID(server)
		if _, member := n.cluster.Member(id); !member || !endsSoon(e, now) {
			continue
		}
		if e = n.endingNow(ctx, id, e); endsSoon(e, now) {
			all[id] = e
		}
	}
	return all
}

// endingNow is that of the certificate which a server shows now or, if it does not answer, of the one that it has shown.
func (n *Node) endingNow(ctx context.Context, id raft.ServerID, shown peer.Ending) peer.Ending {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if e, err := n.cluster.Port().PeerEnding(ctx, id); err == nil {
		return e
	}
	return shown
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

// certificateProblems are what is wrong with certificates at a time.
func certificateProblems(now time.Time, found outlook) (all []keyring.Problem) {
	if found.refused != "" {
		all = append(all, keyring.Problem{Kind: keyring.ProblemCertificate, Severity: keyring.SeverityCritical, Detail: found.refused})
	}
	// Since is when this server first saw it, as the keyring notes: a certificate may have come late in its time.
	add := func(server raft.ServerID, which, advice string, e peer.Ending) {
		all = append(all, keyring.Problem{
			Kind: keyring.ProblemCertificate, Server: server, Advice: advice,
			Detail: fmt.Sprintf("the %s ends at %s, in %v", which, e.Until.UTC().Format(time.DateTime+" UTC"), e.Until.Sub(now).Round(time.Second)),
		})
	}
	for _, e := range found.ends {
		add("", nameOf(e)+" certificate", "", e)
	}
	for _, id := range slices.Sorted(maps.Keys(found.others)) {
		add(id, "certificate that it shows", "Put a new certificate where Config.TLS of that server reads it: the leader looks at it each minute.", found.others[id])
	}
	return all
}

// problemsOf are those of the last look. Of the other servers' certificates only the leader tells.
func (c *certificates) problemsOf(leads bool) []keyring.Problem {
	last := c.told.Load()
	if last == nil {
		return nil
	}
	all := slices.DeleteFunc(slices.Clone(last.problems), func(p keyring.Problem) bool { return p.Server != "" && !leads })
	if last.own == (peer.Ending{}) {
		return all
	}
	if now := last.clock(); now.Before(last.own.From) || now.After(last.own.Until) {
		all = append(all, keyring.Problem{Kind: keyring.ProblemCertificate, Severity: keyring.SeverityCritical, Detail: fmt.Sprintf(
			"own certificate is valid from %s to %s, and by the clock here it is %s: others refuse it", inUTC(last.own.From), inUTC(last.own.Until), inUTC(now))})
	}
	return all
}

// inUTC is a time for people.
func inUTC(t time.Time) string { return t.UTC().Format(time.DateTime + " UTC") }

func endsSoon(e peer.Ending, now time.Time) bool { return e.Until.Sub(now) < soon(e) }

// soon is how long before the end of a certificate somebody should know of it: two weeks, or a third of its life if that is
// less.
func soon(e peer.Ending) time.Duration {
	return min(14*24*time.Hour, e.Until.Sub(e.From)/3)
}
