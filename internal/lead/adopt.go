package lead

// How a key is taken into the ring whose file lies in a keystore, when an operator asks for it. What the leader adopts by
// itself, before the first key, is in firstkey.go.

import (
	"context"
	"fmt"
	"slices"

	"example.com/keyring/internal/fsm"
	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

// Adopter takes keys into the ring whose files are there, on the leader.
type Adopter struct {
	*local.Server
	Clocks *local.Clocks
	Public *local.PublicKeys
}

// Adopt takes a key into the ring, for data and for tokens. If another server has its file, the tokens are admitted when
// the material is here, and Adopt waits for it: see PublicKeys.AwaitMaterial. Adopt may be called again.
func (a *Adopter) Adopt(ctx context.Context, id meta.KeyID) error {
	if err := a.Leading(); err != nil {
		return err
	}
	ring := a.FSM.Ring()
	if ring.WasRemoved(id) {
		return fmt.Errorf("adopt: %w %s: it was removed", local.ErrUnknownKey, id)
	}
	if known := ring.Key(id); known != nil {
		if !known.DataOnly {
			return nil
		}
		return a.admit(ctx, id)
	}
	orphan, here, err := a.findOrphan(ctx, id)
	if err != nil {
		return err
	}
	if why := orphan.Newer(); why != "" {
		return fmt.Errorf("adopt %s: %w: %s: adopt it when the newer build leads", id, fsm.ErrNotReady, why)
	}
	if err := a.propose(ctx, meta.Adopt{Key: orphan, DataOnly: !here}); err != nil || here {
		return err
	}
	return a.admit(ctx, id)
}

// admit admits the tokens of a key that was adopted for data only.
func (a *Adopter) admit(ctx context.Context, id meta.KeyID) error {
	key, err := a.Public.AwaitMaterial(ctx, id)
	if err != nil {
		return fmt.Errorf("adopt %s: %w", id, err)
	}
	return a.propose(ctx, meta.Adopt{Key: key.New(), Admit: true})
}

func (a *Adopter) propose(ctx context.Context, how meta.Adopt) error {
	how.Time = a.Clocks.TimeToWrite(ctx)
	if err := a.Propose(ctx, meta.Command{Adopt: &how}); err != nil {
		return fmt.Errorf("adopt %s: %w", how.Key.ID, err)
	}
	return nil
}

// findOrphan asks this server, then the others, for a key that the ring does not know, and says whether the file is
// here: then the public key was derived here.
func (a *Adopter) findOrphan(ctx context.Context, id meta.KeyID) (orphan meta.NewKey, here bool, err error) {
	named := func(h *peer.Hello) (meta.NewKey, bool) { // a server of an older build tells of others, too
		for _, o := range slices.Concat(h.Orphans, h.Unproven) {
			if o.ID == id {
				return o, true
			}
		}
		return meta.NewKey{}, false
	}
	if o, ok := named(a.HelloOrphan(id)); ok {
		return o, true, nil
	}
	for _, server := range local.ServerIDs(a.Raft) {
		if server == string(a.ID) {
			continue
		}
		h, err := a.Peers.HelloOrphan(ctx, server, id)
		if err != nil {
			continue
		}
		if o, ok := named(h); ok {
			return o, false, nil
		}
	}
	return meta.NewKey{}, false, fmt.Errorf("adopt: %w %s: no server that answers has its file", local.ErrUnknownKey, id)
}
