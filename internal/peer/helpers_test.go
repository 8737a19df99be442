package peer_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"runtime"
	"sync"
	"testing"
	"time"

	"example.com/keyring/internal/peer"
)

const cluster = "prod-1"

// ca is a certificate authority.
type ca struct {
	t     *testing.T
	cert  *x509.Certificate
	key   *ecdsa.PrivateKey
	chain [][]byte // from an intermediate to below the root
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCA(t *testing.T) *ca {
	t.Helper()
	return newAuthority(t, nil)
}

// intermediate returns an authority below a.
func (a *ca) intermediate() *ca { return newAuthority(a.t, a) }

func newAuthority(t *testing.T, above *ca) *ca {
	t.Helper()
	below := &ca{t: t, key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(72 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	parent, signer := template, below.key
	if above != nil {
		template.Subject.CommonName = "intermediate"
		parent, signer = above.cert, above.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, below.key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	if below.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if above != nil {
		below.chain = append([][]byte{der}, above.chain...)
	}
	return below
}

func (a *ca) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// issue makes a certificate for the URIs, valid now and for both sides, but for the changes.
func (a *ca) issue(uris []string, changes ...func(*x509.Certificate)) tls.Certificate {
	a.t.Helper()
	key := newKey(a.t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			a.t.Fatal(err)
		}
		template.URIs = append(template.URIs, u)
	}
	for _, change := range changes {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: append([][]byte{der}, a.chain...), PrivateKey: key}
}

func serverURI(id string) string {
	return peer.Identity{Cluster: cluster, Role: peer.RoleServer, ID: id}.String()
}

// source is the configuration of a good server.
func (a *ca) source(id string) peer.Source {
	return a.with(a.issue([]string{serverURI(id)}))
}

func (a *ca) with(certs ...tls.Certificate) peer.Source {
	return func() (*tls.Config, error) {
		return &tls.Config{Certificates: certs, RootCAs: a.pool()}, nil
	}
}

func everybody(peer.Identity, string) error { return nil }

func serverConfig(t *testing.T, s peer.Source, check func(peer.Identity, string) error) *tls.Config {
	t.Helper()
	c, err := peer.ServerConfig(s, cluster, check, peer.ALPNRaft, peer.ALPNPeer)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func loopback(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// pipes is a listener of net.Pipes, for synctest.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func (p *pipes) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	here, there := net.Pipe()
	select {
	case p.conns <- there:
		return here, nil
	case <-p.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// refusals collects what OnRefuse is told.
type refusals chan error

func (r refusals) note(_ net.Addr, err error) { r <- err }

// sink takes what a listener accepts until the listener closes.
type sink struct {
	wg    sync.WaitGroup
	conns chan *peer.Conn
}

func drainTo(ln net.Listener) *sink {
	s := &sink{conns: make(chan *peer.Conn, 100)}
	s.wg.Go(func() {
		defer close(s.conns)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.conns <- c.(*peer.Conn)
		}
	})
	return s
}

// accepted waits for the listener's end, and returns what it gave out and nobody took.
func (s *sink) accepted() []*peer.Conn {
	s.wg.Wait()
	var list []*peer.Conn
	for c := range s.conns {
		list = append(list, c)
	}
	return list
}

// noLeak fails the test if it ends with more goroutines than it has now. Our Close waits,
// but those of net/http and of a context that ended may be at their last instructions.
func noLeak(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		for range 1_000_000 {
			if runtime.NumGoroutine() <= before {
				return
			}
			runtime.Gosched()
		}
		b := make([]byte, 1<<20)
		t.Errorf("goroutines left:\n%s", b[:runtime.Stack(b, true)])
	})
}

// ended fails unless the other side closes without a byte.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	if b, err := io.ReadAll(c); len(b) > 0 {
		t.Errorf("read %q, %v, want the connection closed", b, err)
	}
}
