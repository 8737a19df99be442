package local

// The public keys in raft, compared with those of the material.

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/mono"
	"example.com/keyring/internal/plan"
)

// The ring has the public half of each signing key, and nothing in raft proves that it belongs there: the check
// value tells the right material, which determines its public half, and says nothing to those who have no
// material. A raft snapshot that somebody has altered, or a server that lies about a key which is to be adopted,
// can put another one in its place. So every server that has the material compares.

// PublicKeys compares, and knows the keys whose public half in the ring is not that of the material here.
type PublicKeys struct {
	*Server
	Version atomic.Uint64 // grows when they change

	compared compared // by Compare alone, which one goroutine calls

	mu    sync.Mutex // guards below
	wrong map[meta.KeyID]bool
}

// NewPublicKeys has compared nothing yet.
func NewPublicKeys(s *Server) *PublicKeys { return &PublicKeys{Server: s} }

// compared is what was compared last: a ring, and a version of the keystore.
type compared struct {
	ring   *meta.Ring
	stored uint64
}

// set notes which they are, and reports whether that is news.
func (p *PublicKeys) set(wrong map[meta.KeyID]bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if maps.Equal(p.wrong, wrong) {
		return false
	}
	p.wrong = wrong
	p.Version.Add(1)
	return true
}

// Status is which they are, in order.
func (p *PublicKeys) Status() []meta.KeyID {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.SortedFunc(maps.Keys(p.wrong), compareIDs)
}

// Agrees reports whether the ring has the public half of the key's material. Without material here that is not
// known.
func (p *PublicKeys) Agrees(key *meta.Key) (agrees, known bool) {
	public, _ := p.Store.Public(key)
	return bytes.Equal(public, key.Public), public != nil
}

// compareAtOnce bounds what is derived before other things have their turn.
const compareAtOnce = 64

// Compare looks at the keys whose tokens verify, if the ring or the version of the keystore is another one than the last
// time. It returns when to go on.
func (p *PublicKeys) Compare(ring *meta.Ring, stored uint64) mono.Time {
	now := compared{ring, stored}
	if p.compared == now {
		return 0
	}
	wrong, derived, at := map[meta.KeyID]bool{}, 0, p.Now()
	for _, m := range ring.Keys {
		if !at.Before(plan.VerifiesUntil(m, p.Tokens)) {
			continue
		}
		if derived == compareAtOnce {
			return mono.Now().Add(100 * time.Millisecond)
		}
		public, new := p.Store.Public(m)
		if new {
			derived++
		}
		if public != nil && !bytes.Equal(public, m.Public) {
			wrong[m.ID] = true
		}
	}
	p.compared = now
	if p.set(wrong) && len(wrong) > 0 {
		p.Logger.Error("public keys in raft do not fit their material", "keys", slices.SortedFunc(maps.Keys(wrong), compareIDs))
	}
	return 0
}

// AwaitMaterial waits until this server has the material of a key of the ring, which it returns, and requires that
// the ring has its public half.
func (p *PublicKeys) AwaitMaterial(ctx context.Context, id meta.KeyID) (*meta.Key, error) {
	for {
		changed := p.FSM.Changed()
		m := p.FSM.Ring().Key(id)
		if m == nil {
			return nil, fmt.Errorf("%w: it was removed", ErrUnknownKey)
		}
		switch agrees, known := p.Agrees(m); {
		case known && agrees:
			return m, nil
		case known:
			return nil, fmt.Errorf("%w: its public key in raft does not fit its material", fsm.ErrCorrupt)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: it decrypts data, but its tokens wait until the leader has its material: %w", ErrKeyMissing, context.Cause(ctx))
		}
	}
}
