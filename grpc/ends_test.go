package keyringgrpc_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	keyringgrpc "example.com/keyring/grpc"
	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// changing is a source that can be replaced.
type changing struct{ now atomic.Pointer[source] }

func newChanging(s source) *changing {
	c := new(changing)
	c.set(s)
	return c
}

func (c *changing) set(s source) { c.now.Store(&s) }

func (c *changing) get() (*tls.Config, error) { return (*c.now.Load())() }

// pair is two servers of a virtual cluster, connected by a call and by raft, in one direction.
type pair struct {
	*virtual
	s1, s2  *port // s2 has dialled s1
	sources map[string]*changing
	in, out net.Conn // raft's
}

// newPair starts them with these sources, and connects them.
func newPair(t *testing.T, sources func(*ca) (s1, s2 source)) *pair {
	v := newVirtual(t)
	one, two := sources(v.ca)
	p := &pair{virtual: v, sources: map[string]*changing{"s1": newChanging(one), "s2": newChanging(two)}}
	for id, s := range p.sources {
		p.start(id, func(cfg *keyringgrpc.Config) { cfg.TLS = s.get })
	}
	p.s1, p.s2 = p.ports["s1"], p.ports["s2"]
	p.connect()
	return p
}

func ofServers(ca *ca) (s1, s2 source) { return ca.server("s1"), ca.server("s2") }

func (p *pair) connect() {
	p.t.Helper()
	if err := p.call(); err != nil {
		p.t.Fatal(err)
	}
	var err error
	if p.out, err = p.s2.StreamLayer().Dial("s1:1", time.Minute); err != nil {
		p.t.Fatal(err)
	}
	if p.in, err = p.s1.StreamLayer().Accept(); err != nil {
		p.t.Fatal(err)
	}
	p.stays("just made")
}

func (p *pair) call() error {
	_, err := p.s2.Call(p.t.Context(), "s1", nil)
	return err
}

// stays requires that both connections are there on both ends, and work.
func (p *pair) stays(when string) {
	p.t.Helper()
	synctest.Wait()
	for id, port := range p.ports {
		if open, _ := port.Connections(); open != 2 {
			p.t.Errorf("%s: %s has %d connections, want 2", when, id, open)
		}
	}
	p.out.Write([]byte("x"))
	if n, err := p.in.Read(make([]byte, 2)); n != 1 || err != nil {
		p.t.Errorf("%s: raft reads %d bytes, %v", when, n, err)
	}
}

// gone requires that neither is there on either end: some servers have cut them off by themselves, and the others notice that.
func (p *pair) gone(when string, cutters ...string) {
	p.t.Helper()
	synctest.Wait()
	p.none(when, cutters...)
	for end, c := range map[string]net.Conn{"in": p.in, "out": p.out} {
		if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
			p.t.Errorf("%s: raft reads %d bytes, %v: %s", when, n, err, end)
		}
		c.Close() // as raft does
	}
	synctest.Wait()
	p.none(when, "s1", "s2")
}

func (p *pair) none(when string, at ...string) {
	p.t.Helper()
	for _, id := range at {
		if open, _ := p.ports[id].Connections(); open != 0 {
			p.t.Errorf("%s: %s has %d connections, want none", when, id, open)
		}
	}
}

// TestConnectionsEndWithTheCertificatesOfEitherEnd, idle ones too, though each end looks at its own clock alone.
func TestConnectionsEndWithTheCertificatesOfEitherEnd(t *testing.T) {
	for _, which := range []string{"s1", "s2"} {
		for _, watcher := range []string{"s1", "s2"} {
			t.Run(which+" seen by "+watcher, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					end := time.Now().Add(10 * time.Minute) // sooner than idle connections of calls end by themselves
					p := newPair(t, func(ca *ca) (s1, s2 source) {
						sources := map[string]source{"s1": ca.server("s1"), "s2": ca.server("s2")}
						sources[which] = ca.server(which, func(c *x509.Certificate) { c.NotAfter = end })
						for id, s := range sources {
							if id != watcher { // to its clock nothing ends
								sources[id] = at(s, end.Add(-time.Minute))
							}
						}
						return sources["s1"], sources["s2"]
					})
					time.Sleep(time.Until(end) - time.Second) // virtual
					p.stays("before the end")
					time.Sleep(2*time.Second + keyringgrpc.RecheckEvery)
					p.gone("after the end", watcher)
				})
			})
		}
	}
}

// at is a source whose clock stands still.
func at(s source, now time.Time) source {
	return func() (*tls.Config, error) {
		conf, err := s()
		conf.Time = func() time.Time { return now }
		return conf, err
	}
}

// TestCallIsRefusedWhenTheCertificateHasEnded, in the moment between the end and the next look.
func TestCallIsRefusedWhenTheCertificateHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		end := time.Now().Add(time.Minute + keyringgrpc.RecheckEvery/2).Truncate(time.Second)
		p := newPair(t, func(ca *ca) (s1, s2 source) {
			return ca.server("s1"), ca.server("s2", func(c *x509.Certificate) { c.NotAfter = end })
		})
		time.Sleep(time.Until(end) + time.Millisecond) // virtual
		p.stays("at the end")
		if err := p.call(); status.Code(err) != codes.Unauthenticated {
			t.Errorf("a call: %v", err)
		}
		p.s1.told.wait("expired at")
	})
}

// TestConnectionsEndWhenCAsAreReplaced, and new ones are made with what is read then.
func TestConnectionsEndWhenCAsAreReplaced(t *testing.T) {
	for _, which := range []string{"s1", "s2"} {
		t.Run("at "+which, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, ofServers)
				next := newCA()
				both := p.ca.pool()
				both.AddCert(next.cert)
				renewed := func(id string) source {
					own, err := next.server(id)()
					must(err)
					return func() (*tls.Config, error) { return &tls.Config{Certificates: own.Certificates, RootCAs: both}, nil }
				}
				for _, s := range p.sources { // first all know both CAs
					old, err := s.get()
					must(err)
					s.set(func() (*tls.Config, error) { return &tls.Config{Certificates: old.Certificates, RootCAs: both}, nil })
				}
				time.Sleep(2 * keyringgrpc.RecheckEvery) // virtual
				p.stays("both CAs are known")
				for id, s := range p.sources {
					s.set(renewed(id))
				}
				time.Sleep(2 * keyringgrpc.RecheckEvery)
				p.stays("certificates are replaced")
				p.sources[which].set(next.server(which)) // this one knows the new CA alone
				time.Sleep(2 * keyringgrpc.RecheckEvery)
				p.gone("the CA is replaced", which)
				p.connect()
			})
		})
	}
}

// TestConnectionsEndWhenAHookRefuses, as of a host that looks whether certificates are revoked.
func TestConnectionsEndWhenAHookRefuses(t *testing.T) {
	hooks := map[string]func(*tls.Config, error){
		"VerifyConnection": func(c *tls.Config, err error) { c.VerifyConnection = func(tls.ConnectionState) error { return err } },
		"VerifyPeerCertificate": func(c *tls.Config, err error) {
			c.VerifyPeerCertificate = func([][]byte, [][]*x509.Certificate) error { return err }
		},
	}
	for name, hook := range hooks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, ofServers)
				base, err := p.sources["s1"].get()
				must(err)
				answer := func(err error) {
					conf := base.Clone()
					hook(conf, err)
					p.sources["s1"].set(func() (*tls.Config, error) { return conf, nil })
					time.Sleep(2 * keyringgrpc.RecheckEvery) // virtual
				}
				answer(nil)
				p.stays("the hook accepts")
				answer(errors.New("revoked"))
				p.gone("the hook refuses", "s1")
				p.s1.told.wait("revoked")
			})
		})
	}
}

// TestConnectionsStayWhenCertificatesCannotBeRead, none are made with what came beside the error, and the log says why.
func TestConnectionsStayWhenCertificatesCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, ofServers)
		half, err := p.sources["s1"].get()
		must(err)
		for _, base := range []*tls.Config{nil, half} {
			p.sources["s1"].set(func() (*tls.Config, error) { return base, errors.New("no such file") })
			time.Sleep(2 * keyringgrpc.RecheckEvery) // virtual
			p.s1.told.wait("no such file")
			p.stays("could not read the certificates")
			if _, err := p.s2.StreamLayer().Dial("s1:1", time.Minute); err == nil {
				t.Error("a connection is taken")
			}
			if _, err := p.s1.Call(t.Context(), "s2", nil); err == nil || !says(err.Error(), "no such file") {
				t.Errorf("a connection is made: %v", err)
			}
		}
	})
}

// TestRemovedServerIsCutOff by a member, in both directions, at once where the keyring hears of it, and by a look now and then where not.
func TestRemovedServerIsCutOff(t *testing.T) {
	for id, other := range map[raft.ServerID]string{"s1": "s2", "s2": "s1"} {
		t.Run(string(id), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t, ofServers)
				p.remove(id)
				p.s1.keys.change()
				p.s2.keys.change()
				p.gone("the keyring hears of it", other)
				p.set(id, string(id)+":1")
				p.connect()
				p.remove(id)
				time.Sleep(2 * keyringgrpc.RecheckEvery) // virtual
				p.gone("nobody tells", other)
				if n := p.s2.Links(); n != 0 && id == "s1" {
					t.Errorf("%d links to nobody", n)
				}
			})
		})
	}
}

// TestRemovalEndsCallsToTheServer that are under way.
func TestRemovalEndsCallsToTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t, ofServers)
		p.s1.keys.answer = func(ctx context.Context, _ raft.ServerID, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		called := make(chan error, 1)
		go func() { called <- p.call() }()
		synctest.Wait()
		begun := time.Now()
		p.remove("s1")
		p.s2.keys.change()
		if err := <-called; err == nil || time.Since(begun) > 0 {
			t.Errorf("after %v: %v", time.Since(begun), err)
		}
	})
}

// TestCloseWaits for what is under way, and says what does not end.
func TestCloseWaits(t *testing.T) {
	for takes, ends := range map[time.Duration]bool{keyringgrpc.Patience / 2: true, 2 * keyringgrpc.Patience: false} {
		synctest.Test(t, func(t *testing.T) {
			p := newPair(t, ofServers)
			now := p.ca.server("s1")
			p.sources["s1"].set(func() (*tls.Config, error) {
				time.Sleep(takes) // virtual
				return now()
			})
			time.Sleep(keyringgrpc.RecheckEvery)
			synctest.Wait()
			begun := time.Now()
			err := p.s1.Close()
			if took := time.Since(begun); (err == nil) != ends || took < min(takes, keyringgrpc.Patience) {
				t.Errorf("of %v: after %v: %v", takes, took, err)
			}
			time.Sleep(takes)
		})
	}
}
