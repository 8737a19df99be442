package keyring

import (
	"context"
	"fmt"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
)

// Adopt takes a key into the keyring whose file lies in a keystore although the keyring does
// not know it, here or on another server: Status.Orphans names those of each server. It
// becomes an inactive key that opens data and whose tokens verify. For a key that the leader
// adopted of its own accord, when the keyring was empty, it admits the tokens, which such a
// key does not have: whoever can plant a file must not be able to plant a signer. So be sure
// where the file comes from. Those tokens verify for TokenPolicy.MaxTTL and the leeway from then on, as those of
// every key that is adopted. That is a command of version 2 of the log: until every server says, asked now, that it
// applies those, the error names the servers that do not. Adopting a key again has no effect.
//
// Of a key that the leader has not, the tokens are admitted when it has got the material, from which it derives the
// public key: no other server is believed which one that is. Until then the key opens data, and Adopt waits. If ctx
// ends first the error matches ErrKeyMissing: call it again.
//
// Leader only. A key that no server has is ErrUnknownKey, and so is one that was removed. One whose public key in
// raft is not that of its material is ErrCorrupt.
func (k *Keyring) Adopt(ctx context.Context, id KeyID) error {
	a := &adopter{k.server, k.clocks, k.public}
	return k.do(ctx, func(ctx context.Context) error { return a.adoptFile(ctx, id) })
}

// adopter takes keys into the keyring whose files are there.
type adopter struct {
	*server
	clocks *clocks
	public *publicKeys
}

func (a *adopter) adoptFile(ctx context.Context, id KeyID) error {
	if err := a.mayLead(); err != nil {
		return err
	}
	ring := a.fsm.ring.Load()
	if ring.WasRemoved(id) {
		return fmt.Errorf("adopt: %w %s: it was removed", ErrUnknownKey, id)
	}
	if known := ring.Key(id); known != nil {
		if !known.DataOnly {
			return nil
		}
		return a.admit(ctx, id)
	}
	orphan, own, err := a.findOrphan(ctx, id)
	if err != nil {
		return err
	}
	if err := a.adopt(ctx, meta.Adopt{Key: orphan, DataOnly: !own}); err != nil || own {
		return err
	}
	return a.admit(ctx, id)
}

// admit admits the tokens of a key that was adopted for data only.
func (a *adopter) admit(ctx context.Context, id KeyID) error {
	key, err := a.public.awaitMaterial(ctx, id)
	if err != nil {
		return fmt.Errorf("adopt %s: %w", id, err)
	}
	return a.adopt(ctx, meta.Adopt{Key: key.New(), Admit: true})
}

func (a *adopter) adopt(ctx context.Context, how meta.Adopt) error {
	how.Time = a.clocks.timeToWrite(ctx)
	if err := a.propose(ctx, meta.Command{Adopt: &how}); err != nil {
		return fmt.Errorf("adopt %s: %w", how.Key.ID, err)
	}
	return nil
}

// findOrphan asks this server, then the others, for a key that the ring does not know, and says whether it is
// this server's own: then its public key was derived here.
func (a *adopter) findOrphan(ctx context.Context, id KeyID) (orphan meta.NewKey, own bool, err error) {
	named := func(h *peer.Hello) (meta.NewKey, bool) {
		for _, o := range h.Orphans {
			if o.ID == id {
				return o, true
			}
		}
		return meta.NewKey{}, false
	}
	if o, ok := named(a.hello()); ok {
		return o, true, nil
	}
	for _, server := range servers(a.raft) {
		if server == string(a.cfg.ID) {
			continue
		}
		h, err := a.peers.Hello(ctx, server)
		if err != nil {
			continue
		}
		if o, ok := named(h); ok {
			return o, false, nil
		}
	}
	return meta.NewKey{}, false, fmt.Errorf("adopt: %w %s: no server that answers has its file", ErrUnknownKey, id)
}
