package port

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"example.com/keyring/internal/mono"
	"github.com/hashicorp/raft"
)

// Two servers may have one ID, one certificate and one log: somebody has copied a server's directory and started the copy.
// Only one of them has the member's place. The leader refuses the other one, which asks again and again.

// ErrIDInUse is matched by what a server is told that asks for the place of a member which answers elsewhere.
var ErrIDInUse = errors.New("another server has this ID")

// idInUse says by the answer from a member's address, a or err, whether a server at addr is another one than the member.
func idInUse(member raft.Server, addr string, a HelloAnswer, err error) error {
	if err == nil && a.Bootstrapped && a.Addr != addr || IsRefusal(err) {
		return fmt.Errorf("server %s: %w: it is a member already, and answers at %s", member.ID, ErrIDInUse, member.Address)
	}
	return nil
}

// claimLasts is for how long a claim stands that is not made again. A server makes its own each minute at least.
const claimLasts = 3 * time.Minute

// Claim is that of a server which says that it is a member, and is refused: the member answers elsewhere.
type Claim struct {
	ID              raft.ServerID
	Answers, Claims string // the addresses of the member and of the other one
}

// String is one sentence for people.
func (c Claim) String() string {
	return fmt.Sprintf("two servers claim to be %s: the member answers at %s, the other one is at %s", c.ID, c.Answers, c.Claims)
}

// claims are the claims that this server has refused. The zero value can be used.
type claims struct {
	mu   sync.Mutex // guards below
	made map[raft.ServerID]madeClaim
}

type madeClaim struct {
	Claim
	at mono.Time
}

// note notes the claim of a server, which got that answer, and reports whether what stands has changed.
func (cs *claims) note(now mono.Time, c Claim, answer error) (changed bool) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	was, stood := cs.made[c.ID]
	switch {
	case answer == nil:
		if stood = stood && was.Claims == c.Claims; stood {
			delete(cs.made, c.ID)
		}
		return stood
	case !errors.Is(answer, ErrIDInUse):
		return false
	}
	if cs.made == nil {
		cs.made = map[raft.ServerID]madeClaim{}
	}
	cs.made[c.ID] = madeClaim{c, now}
	return was.Claim != c
}

// standing are the claims that stand, by server.
func (cs *claims) standing(now mono.Time) (all []Claim) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	maps.DeleteFunc(cs.made, func(_ raft.ServerID, c madeClaim) bool { return now.Sub(c.at) >= claimLasts })
	for _, id := range slices.Sorted(maps.Keys(cs.made)) {
		all = append(all, cs.made[id].Claim)
	}
	return all
}

// NoteClaim notes what a server at addr was answered which has proved a member's ID, and has asked for its place.
func (p *Port) NoteClaim(id raft.ServerID, addr string, answer error) {
	member, known := p.Member(id)
	if !known {
		return
	}
	if p.claims.note(mono.Now(), Claim{id, string(member.Address), addr}, answer) {
		p.host.Notify()
	}
}

// noteOwnClaim notes what the leader has answered when this server has told it where it is.
func (p *Port) noteOwnClaim(answer error) {
	refused := ""
	if errors.Is(answer, ErrIDInUse) {
		refused = answer.Error()
	}
	if was := p.Displaced(); was == refused {
		return
	}
	if p.displaced.Store(&refused); refused != "" {
		p.cfg.Logger.Warn("another server has this server's place in the cluster", "id", p.cfg.ID, "addr", p.cfg.Addr, "error", answer)
	}
	p.host.Notify()
}

// Displaced is why this server does not have its place in the cluster, if another one of its ID has it.
func (p *Port) Displaced() string {
	if refused := p.displaced.Load(); refused != nil {
		return *refused
	}
	return ""
}
