package node_test

import (
	"crypto/tls"
	"crypto/x509"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
)

// TestStatusTellsOfCertificatesThatEnd, and no longer when there is another one.
func TestStatusTellsOfCertificatesThatEnd(t *testing.T) {
	t.Parallel()
	var soon atomic.Pointer[func() (*tls.Config, error)]
	figures := keyringtest.NewFigures()
	c := keyringtest.StartNodes(t, 1, func(cfg *node.Config) {
		good := cfg.TLS
		soon.CompareAndSwap(nil, &good)
		cfg.TLS, cfg.Metrics, cfg.MetricsEvery = func() (*tls.Config, error) { return (*soon.Load())() }, figures, -1
	})
	n := c.Nodes["s1"]
	ca := c.CA
	short := ca.Source("keyring://test/server/s1", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(10 * time.Minute) })
	soon.Store(&short)
	n.LookAtCertificates()
	told := func() (p keyring.Problem) {
		st, err := n.Keyring().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range st.Problems {
			if p.Kind == keyring.ProblemCertificate {
				return p
			}
		}
		return p
	}
	if p := told(); p.Severity != keyring.SeverityWarning || !strings.Contains(p.Detail, "the own certificate ends at") {
		t.Errorf("10 minutes before the end: %+v", p)
	}
	gauges, _ := figures.Get()
	if own, cas := gauges["keyring.certificate.left;certificate=own"], gauges["keyring.certificate.left;certificate=CA"]; own > 600 || own < 500 || cas < 80_000 {
		t.Errorf("%v s left, of the CA %v", own, cas)
	}
	expired := ca.Source("keyring://test/server/s1", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	soon.Store(&expired)
	n.LookAtCertificates()
	if p := told(); p.Severity != keyring.SeverityCritical || !strings.Contains(p.Detail, "expired") {
		t.Errorf("after the end: %+v", p)
	}
	long := ca.Source("keyring://test/server/s1", nil)
	soon.Store(&long)
	n.LookAtCertificates()
	if p := told(); p.Kind != "" {
		t.Errorf("there is a new one: %+v", p)
	}
}
