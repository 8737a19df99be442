package port

import (
	"fmt"
	"time"

	"example.com/keyring/internal/mono"
	"github.com/hashicorp/raft"
)

// Problem is one of keyring's, as far as a Port knows it. What is empty is what keyring says of the kind.
type Problem struct {
	Kind, Severity string
	Server         raft.ServerID // empty for this server
	Since          time.Time
	Detail         string
}

// The kinds, and the severity, as keyring has them.
const (
	kindHost    = "host hangs"
	kindRemoved = "removed"
	kindIDTwice = "ID used twice"

	critical = "critical"
)

// Problems says that Config.TLS does not return, which servers have one ID, and whether the others say that this server was
// removed. It may be called before Attach.
func (p *Port) Problems() (all []Problem) {
	if since, hangs := p.tlsHangs(); hangs {
		all = append(all, Problem{Kind: kindHost, Severity: critical, Since: since, Detail: fmt.Sprintf(
			"Config.TLS has not returned since %s: it is called for each connection to and from this server", inUTC(since))})
	}
	if refused := p.Displaced(); refused != "" {
		all = append(all, Problem{Kind: kindIDTwice, Detail: fmt.Sprintf("this server, at %s, does not have its place in the cluster: %s", p.cfg.Addr, refused)})
	}
	if p.leads() {
		for _, c := range p.claims.standing(mono.Now()) {
			q := Problem{Kind: kindIDTwice, Server: c.ID, Detail: c.String()}
			if c.ID == p.cfg.ID {
				q.Server = ""
			}
			all = append(all, q)
		}
	}
	if by := p.Removed(); len(by) > 0 {
		all = append(all, Problem{Kind: kindRemoved, Detail: RemovedDetail(by)})
	}
	return all
}
