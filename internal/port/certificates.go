package port

// When this server's certificates end and, on the leader, those of the others.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// certificatesEvery is how often Config.TLS is asked for the certificates of now.
const certificatesEvery = time.Minute

// Certificate is keyring.Certificate.
type Certificate struct {
	Server              raft.ServerID
	CA                  bool
	NotBefore, NotAfter time.Time
}

// certificates is what is known of certificates.
type certificates struct {
	mu   sync.Mutex // held while they are looked at
	told atomic.Pointer[outlook]
}

// outlook is what a look at certificates has found. It is never changed.
type outlook struct {
	all   []Certificate
	err   error            // why others refuse this server's own, or what Config.TLS says is wrong
	own   peer.Ending      // this server's own; zero if it is not known
	clock func() time.Time // of Config.TLS
}

// equal reports whether there is nothing new to tell. How much time is left is not.
func (o *outlook) equal(other *outlook) bool {
	return slices.Equal(o.all, other.all) && fmt.Sprint(o.err) == fmt.Sprint(other.err)
}

// Certificates returns when the certificates of this server end and, on the leader, those of the others, the first to end first;
// and why others refuse this server's own, as was found at the last look, or as the clock of now says: one that is set
// wrong is no change of a certificate.
func (p *Port) Certificates() ([]Certificate, error) {
	o := p.certificates.told.Load()
	if o == nil {
		return nil, nil
	}
	all, err := o.now()
	if !p.leads() { // a server that has led before no longer looks
		all = slices.DeleteFunc(slices.Clone(all), func(c Certificate) bool { return c.Server != p.cfg.ID })
	}
	return all, err
}

// now is what was found, by the clock of now.
func (o *outlook) now() ([]Certificate, error) {
	if o.err != nil || o.own == (peer.Ending{}) {
		return o.all, o.err
	}
	if now := o.clock(); now.Before(o.own.From) || now.After(o.own.Until) {
		return o.all, fmt.Errorf("own certificate is valid from %s to %s, but by the clock here it is %s: others reject it", inUTC(o.own.From), inUTC(o.own.Until), inUTC(now))
	}
	return o.all, nil
}

// inUTC is a time for people.
func inUTC(t time.Time) string { return t.UTC().Format(time.DateTime + " UTC") }

func (p *Port) leads() bool {
	r := p.raft.Load()
	return r != nil && r.State() == raft.Leader
}

// watchCertificates looks at certificates now and then, until ctx ends.
func (p *Port) watchCertificates(ctx context.Context) {
	ticks := time.NewTicker(certificatesEvery)
	defer ticks.Stop()
	for {
		p.LookAtCertificates(ctx)
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
	}
}

// LookAtCertificates looks once. It wakes all who wait for a change of Status if there is something new to tell.
func (p *Port) LookAtCertificates(ctx context.Context) {
	p.certificates.mu.Lock()
	defer p.certificates.mu.Unlock()
	base, err := p.cfg.TLS()
	if err != nil && !errors.Is(err, peer.ErrKept) {
		base = nil
	}
	ends, refused := peer.OwnEndings(base)
	if refused == nil {
		refused = peer.CheckOwn(base, p.cfg.identity()) // it may have been replaced by another server's
	}
	found := &outlook{err: err, clock: func() time.Time { return clock(base) }}
	if err == nil {
		found.err = refused
	}
	for _, e := range ends {
		found.all = append(found.all, Certificate{p.cfg.ID, e.CA, e.From, e.Until})
		if !e.CA {
			found.own = e
		}
	}
	if p.leads() && base != nil {
		found.all = append(found.all, p.othersCertificates(ctx, clock(base))...)
	}
	slices.SortStableFunc(found.all, func(a, b Certificate) int { return a.NotAfter.Compare(b.NotAfter) })
	if was := p.certificates.told.Swap(found); was == nil || !found.equal(was) {
		p.host.Notify()
	}
}

// othersCertificates are those of the other members. A connection shows what its server had when the connection was made, so
// a server whose certificate ends soon is connected to once more.
func (p *Port) othersCertificates(ctx context.Context, now time.Time) (all []Certificate) {
	shown := p.dialer.PeerEndings()
	for _, s := range p.Members() {
		e, known := shown[string(s.ID)]
		if !known || s.ID == p.cfg.ID {
			continue
		}
		if e.Soon(now) {
			e = p.endingNow(ctx, s, e)
		}
		all = append(all, Certificate{s.ID, false, e.From, e.Until})
	}
	return all
}

// endingNow is that of the certificate which a server shows now or, if it does not answer, of the one that it has shown.
func (p *Port) endingNow(ctx context.Context, s raft.Server, shown peer.Ending) peer.Ending {
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	c, err := p.dialer.Dial(ctx, string(s.ID), string(s.Address), peer.ALPNPeer)
	if err != nil {
		return shown
	}
	defer c.Close()
	return c.PeerEnding()
}

// clock is the time by which a TLS configuration goes.
func clock(base *tls.Config) time.Time {
	if base != nil && base.Time != nil {
		return base.Time()
	}
	return time.Now()
}

// tlsPatience is how long a call of Config.TLS may take before Problems tells of it.
const tlsPatience = 10 * time.Second

// watchTLS returns source, each call of which is noted.
func (p *Port) watchTLS(source peer.Source) peer.Source {
	return func() (base *tls.Config, err error) {
		p.tlsCalls.Watch("Config.TLS", tlsPatience, func() { base, err = source() })
		return base, err
	}
}

// tlsHangs returns since when a call of Config.TLS has not returned that should have; false if there is none.
func (p *Port) tlsHangs() (since time.Time, hangs bool) {
	since, hangs = p.tlsCalls.Slow(mono.Now())["Config.TLS"]
	return since, hangs
}
