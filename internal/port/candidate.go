package port

import (
	"fmt"
	"strings"

	"example.com/keyring/internal/peer"
)

// Candidate is a server that may know who leads the cluster.
type Candidate struct {
	ID   string // peer.AnyServer if it is not known
	Addr string
}

// String returns the form that ParseCandidate reads.
func (c Candidate) String() string {
	if c.ID == peer.AnyServer {
		return c.Addr
	}
	return c.ID + "@" + c.Addr
}

// ParseCandidate reads id@host:port, or host:port. An ID may have an @ in it, an address has none.
func ParseCandidate(text string) (Candidate, error) {
	c := Candidate{peer.AnyServer, text}
	if i := strings.LastIndexByte(text, '@'); i >= 0 {
		c = Candidate{text[:i], text[i+1:]}
		if err := peer.CheckServerID(c.ID); err != nil {
			return c, fmt.Errorf("%.300q: %w", text, err)
		}
	}
	return c, peer.CheckAddress(c.Addr)
}
