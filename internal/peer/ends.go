package peer

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"
)

// Ending is when a certificate ends that this server needs for its connections.
type Ending struct {
	CA          bool // it is that of a CA, which vouches for this server's own
	From, Until time.Time
}

// Soon reports whether somebody should know of it now: two weeks before, or a third of the certificate's life if that is less.
func (e Ending) Soon(now time.Time) bool {
	return e.Until.Sub(now) < min(14*24*time.Hour, e.Until.Sub(e.From)/3)
}

// OwnEndings says when this server's own certificate ends, and when no chain of RootCAs vouches for it any more. The error
// says why others refuse it now; then the Ending of the CA may be missing. A certificate that comes from a callback is not
// looked at: there are no Endings.
func OwnEndings(base *tls.Config) ([]Ending, error) {
	leaf, err := ownLeaf(base)
	if err != nil || leaf == nil {
		return nil, err
	}
	ends := []Ending{{From: leaf.NotBefore, Until: leaf.NotAfter}}
	if err := CheckOwnNow(base); err != nil {
		return ends, err
	}
	own := []*x509.Certificate{leaf}
	for _, der := range base.Certificates[0].Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return ends, fmt.Errorf("%s: %w", errOwn, err)
		}
		own = append(own, c)
	}
	chains, err := verifyChain(base, base.RootCAs, x509.ExtKeyUsageServerAuth, own)
	if err != nil {
		return ends, err
	}
	last := Ending{CA: true}
	for _, chain := range chains {
		first := chain[len(chain)-1] // of those of the chain that are not the server's own, the one that ends first
		for _, c := range chain[1:] {
			if c.NotAfter.Before(first.NotAfter) {
				first = c
			}
		}
		if first != leaf && first.NotAfter.After(last.Until) {
			last.From, last.Until = first.NotBefore, first.NotAfter
		}
	}
	if !last.Until.IsZero() {
		ends = append(ends, last)
	}
	return ends, nil
}

// PeerEndings says when the certificates end that other servers have shown on the connections that this one has dialled, by their
// IDs: of several of a server, the one that was dialled last. A server whose certificate was replaced shows the new one on its
// next connection.
func (d *Dialer) PeerEndings() map[string]Ending {
	d.mu.Lock()
	last := map[string]*Conn{}
	for c := range d.conns {
		if other := last[c.peer.ID]; other == nil || other.number < c.number {
			last[c.peer.ID] = c
		}
	}
	d.mu.Unlock()
	all := map[string]Ending{}
	for id, c := range last {
		all[id] = c.PeerEnding()
	}
	return all
}

// PeerEnding says when the certificate ends that the other side has shown.
func (c *Conn) PeerEnding() Ending {
	leaf := c.ConnectionState().PeerCertificates[0] // which was verified
	return Ending{From: leaf.NotBefore, Until: leaf.NotAfter}
}
