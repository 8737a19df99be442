package keyring

// Certificates: when they end, as Config.Certificates says, and what is wrong with them.

import (
	"errors"
	"fmt"
	"time"

	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// Certificate says when a certificate expires that the connections of a server need.
type Certificate struct {
	Server    raft.ServerID `json:"server"`
	CA        bool          `json:"ca,omitempty"` // the certificate is the CA's, not the server's own
	NotBefore time.Time     `json:"notBefore"`
	NotAfter  time.Time     `json:"notAfter"`
}

// name is what the certificate is called on the server with this ID.
func (c Certificate) name(here raft.ServerID) string {
	switch {
	case c.Server != here:
		return "certificate that it shows"
	case c.CA:
		return "CA certificate"
	}
	return "own certificate"
}

// certificateProblems are what is wrong with certificates. Since is when this server first saw it: a
// certificate may have come late in its time.
func (o overview) certificateProblems() (all []Problem) {
	if err := o.refused; err != nil {
		p := Problem{Kind: ProblemCertificate, Severity: SeverityCritical, Detail: err.Error()}
		if errors.Is(err, peer.ErrKept) { // the connections go on
			p.Severity = SeverityWarning
		}
		all = append(all, p)
	}
	for _, c := range o.certificates {
		if !(peer.Ending{From: c.NotBefore, Until: c.NotAfter}).Soon(o.now) {
			continue
		}
		p := Problem{Kind: ProblemCertificate, Detail: fmt.Sprintf("the %s expires at %s, in %v", c.name(o.id), inUTC(c.NotAfter), c.NotAfter.Sub(o.now).Round(time.Second))}
		if c.Server != o.id {
			p.Server, p.Advice = c.Server, "Put a new certificate where Config.TLS of that server reads it. The leader checks it every minute."
		}
		all = append(all, p)
	}
	return all
}

// setCertificates tells Config.Metrics how much time is left.
func (g *gauges) setCertificates(o overview) {
	for _, c := range o.certificates {
		name := "own"
		if c.CA {
			name = "CA"
		}
		if c.Server == o.id {
			g.to.SetGauge("keyring.certificate.left", c.NotAfter.Sub(o.now).Seconds(), map[string]string{"certificate": name})
		}
	}
}
