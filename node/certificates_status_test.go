package node_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
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
	c := keyringtest.StartNodes(t, 1, func(cfg *node.Config) {
		good := cfg.TLS
		soon.CompareAndSwap(nil, &good)
		cfg.TLS = func() (*tls.Config, error) { return (*soon.Load())() }
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
	if p := told(); p.Severity != keyring.SeverityWarning || !strings.Contains(p.Detail, "the own certificate expires at") {
		t.Errorf("10 minutes before the end: %+v", p)
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
	ca := keyringtest.NewCA(t)
	give := func(id raft.ServerID, left time.Duration) {
		source := ca.Source("keyring://test/server/"+string(id), func(c *x509.Certificate) { c.NotAfter = time.Now().Add(left) })
		of(id).Store(&source)
	}
	c := keyringtest.StartNodes(t, 3, func(cfg *node.Config) {
		source := of(cfg.ID)
		give(cfg.ID, 10*time.Minute)
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
			if p.Severity != keyring.SeverityWarning || !strings.Contains(p.Detail, "expires at") || !strings.Contains(p.Advice, "that server") {
				t.Errorf("%s: %+v", when, p)
			}
		}
		if slices.Sort(told); !slices.Equal(told, want) {
			t.Errorf("%s it tells of the certificates of %q, want %q", when, told, want)
		}
	}
	wantTold("10 minutes before the end", others...)
	give(others[0], 1000*time.Hour)
	wantTold("when one has another", others[1])
	give(others[1], 1000*time.Hour)
	wantTold("when both have others")
	st, err := leader.Keyring().Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ends []string
	for _, c := range st.Certificates {
		ends = append(ends, fmt.Sprintf("%s CA %t in %v", c.Server, c.CA, time.Until(c.NotAfter).Round(time.Hour/2)))
	}
	want := []string{fmt.Sprintf("%s CA false in 0s", id), fmt.Sprintf("%s CA true in 24h0m0s", id)}
	for _, other := range others {
		want = append(want, fmt.Sprintf("%s CA false in 1000h0m0s", other))
	}
	if !slices.Equal(ends, want) {
		t.Errorf("the certificates end %q, want %q", ends, want)
	}
}
