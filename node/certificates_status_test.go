package node_test

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
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

// TestLeaderTellsOfOthersCertificatesThatEnd, and no longer of that of a server which has another.
func TestLeaderTellsOfOthersCertificatesThatEnd(t *testing.T) {
	t.Parallel()
	var sources [4]atomic.Pointer[func() (*tls.Config, error)]
	of := func(id raft.ServerID) *atomic.Pointer[func() (*tls.Config, error)] { return &sources[id[1]-'0'] }
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		good, source := cfg.TLS, of(cfg.ID)
		source.Store(&good)
		cfg.TLS = func() (*tls.Config, error) { return (*source.Load())() }
	})
	c.Ready(t.Context())
	id := leaderOf(t.Context(), t, c)
	leader, others := c.Nodes[id], []raft.ServerID{}
	for _, s := range node.RaftServers(leader) {
		if s.ID != id {
			others = append(others, s.ID)
		}
	}
	wantTold := func(when string, want ...raft.ServerID) {
		t.Helper()
		leader.LookAtCertificates()
		st, err := leader.Keyring().Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var told []raft.ServerID
		for _, p := range st.Problems {
			if p.Kind != keyring.ProblemCertificate || p.Server == "" {
				continue
			}
			told = append(told, p.Server)
			if p.Severity != keyring.SeverityWarning || !strings.Contains(p.Detail, "ends at") || !strings.Contains(p.Advice, "that server") {
				t.Errorf("%s: %+v", when, p)
			}
		}
		if slices.Sort(told); !slices.Equal(told, want) {
			t.Errorf("%s it tells of the certificates of %q, want %q", when, told, want)
		}
	}
	wantTold("a day before the end")
	own := *of(id).Load()
	late := func() (*tls.Config, error) {
		conf, err := own()
		conf.Time = func() time.Time { return time.Now().Add(23*time.Hour + 50*time.Minute) }
		return conf, err
	}
	of(id).Store(&late)
	wantTold("10 minutes before the end", others...)
	long := c.CA.Source("keyring://test/server/"+string(others[0]), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(1000 * time.Hour) })
	of(others[0]).Store(&long)
	wantTold("when one has another", others[1])
}
