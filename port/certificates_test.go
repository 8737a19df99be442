package port_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/peer"
	"example.com/keyring/port"
)

// swapped is a source that can be replaced.
type swapped struct {
	atomic.Pointer[func() (*tls.Config, error)]
}

func (s *swapped) set(source func() (*tls.Config, error)) { s.Store(&source) }
func (s *swapped) get() (*tls.Config, error)              { return (*s.Load())() }

// problem is the first of a kind, and nothing if there is none.
func (h *host) problem(t *testing.T, kind keyring.ProblemKind) keyring.Problem {
	t.Helper()
	st, err := h.keys.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == kind })
	if i < 0 {
		return keyring.Problem{}
	}
	return st.Problems[i]
}

// TestHostTellsOfItsCertificates: what ends soon, what others refuse, and what can't be read, within a minute each.
func TestHostTellsOfItsCertificates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := newHosts(t, 1)
		h, tlsOf := hs.all["h1"], &swapped{}
		good := h.tls
		tlsOf.set(good)
		h.tls = tlsOf.get
		hs.start(h, true)
		until := func(end time.Duration) func() (*tls.Config, error) {
			return hs.ca.Source(uri("h1"), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(end) })
		}
		for _, step := range []struct {
			name     string
			source   func() (*tls.Config, error)
			severity keyring.Severity
			detail   string
		}{
			{"good", good, "", ""},
			{"ends soon", until(10 * time.Minute), keyring.SeverityWarning, "the own certificate expires at"},
			{"ended", until(-time.Minute), keyring.SeverityCritical, "own certificate expired"},
			{"of another server", hs.ca.Source(uri("h2"), nil), keyring.SeverityCritical, "own certificate is that of keyring://test/server/h2, want keyring://test/server/h1"},
			{"gone", func() (*tls.Config, error) { return nil, errors.New("tls.crt is gone") }, keyring.SeverityCritical, "tls.crt is gone"},
			{"gone, and read before", func() (*tls.Config, error) {
				c, _ := good()
				return c, errors.Join(errors.New("tls.crt is gone"), peer.ErrKept)
			}, keyring.SeverityWarning, "tls.crt is gone"},
			{"good again", good, "", ""},
		} {
			tlsOf.set(step.source)
			time.Sleep(time.Minute) // virtual
			synctest.Wait()
			if p := h.problem(t, keyring.ProblemCertificate); p.Severity != step.severity || !strings.Contains(p.Detail, step.detail) {
				t.Errorf("%s: %+v", step.name, p)
			}
		}
		st, err := h.keys.Status(t.Context())
		if err != nil || len(st.Certificates) != 2 || st.Certificates[0].Server != "h1" || st.Certificates[0].CA == st.Certificates[1].CA {
			t.Errorf("the certificates are %+v, %v", st.Certificates, err)
		}
	})
}

// TestConfigTLSThatHangs is named by Status, and Close gives it up and says so.
func TestConfigTLSThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		hs := newHosts(t, 1)
		h, tlsOf, back := hs.all["h1"], &swapped{}, make(chan struct{})
		tlsOf.set(h.tls)
		cfg := hs.config(h)
		cfg.TLS = tlsOf.get
		var err error
		if h.port, err = port.Listen(cfg); err != nil {
			t.Fatal(err)
		}
		hs.run(h, true)
		if err := h.keys.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		tlsOf.set(func() (*tls.Config, error) { <-back; return nil, errors.New("no certificate") })
		time.Sleep(14*time.Second - time.Since(began)) // virtual: it is asked every 5 seconds
		if p := h.problem(t, keyring.ProblemHost); p.Kind != "" {
			t.Errorf("early: %+v", p)
		}
		time.Sleep(2 * time.Second)
		if p := h.problem(t, keyring.ProblemHost); p.Severity != keyring.SeverityCritical || !strings.HasPrefix(p.Detail, "Config.TLS has not returned since 2000-01-01 00:00:") {
			t.Errorf("after 10 seconds: %+v", p)
		}
		if err := errors.Join(h.keys.Close(), h.raft.Shutdown().Error()); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		err = h.port.Close()
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "Config.TLS") || took > 11*time.Second {
			t.Errorf("Close took %v: %v", took, err)
		}
		close(back)
		synctest.Wait() // the test fails if a goroutine is left
	})
}
