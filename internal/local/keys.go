package local

// Which keys servers hold, and how this one hands them out.

import (
	"context"
	"errors"
	"fmt"

	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"example.com/keyring/internal/plan"
)

// Ask asks the servers live which of the keys they hold, and stops when the answers are enough.
func (s *Server) Ask(ctx context.Context, servers []string, ids []meta.KeyID, enough func(map[string]plan.Answer) bool) map[string]plan.Answer {
	return peer.All(ctx, servers, func(ctx context.Context, server string) (plan.Answer, error) {
		held, err := s.askHeld(ctx, server, ids)
		return plan.Answer{Keystore: held.Keystore, Held: held.Keys}, err
	}, enough)
}

// askHeld asks one server, which may be this one.
func (s *Server) askHeld(ctx context.Context, server string, ids []meta.KeyID) (peer.Held, error) {
	if server == string(s.ID) {
		return s.HeldHere(ctx, ids)
	}
	return s.Peers.Held(ctx, server, ids)
}

// HeldHere answers the live question from the disk, not from memory. About one key that it
// can't read at the moment it does not answer at all, for "no" may have the key dropped; among
// many, such a key is not held. Nor is one that only a newer build can use. It ends with ctx, and then does not answer either.
func (s *Server) HeldHere(ctx context.Context, ids []meta.KeyID) (peer.Held, error) {
	held, ring := peer.Held{Keystore: s.Store.ID()}, s.FSM.Ring()
	for _, id := range ids {
		if ctx.Err() != nil {
			return peer.Held{}, context.Cause(ctx)
		}
		if key := ring.Key(id); key != nil && key.Newer() != "" {
			continue
		}
		here, err := s.Store.Confirm(id)
		if err != nil && len(ids) == 1 {
			s.Logger.Error("could not confirm a key", "key", id, "error", err)
			return peer.Held{}, &peer.Refusal{Code: peer.NotReady}
		}
		if here {
			held.Keys = append(held.Keys, id)
		}
	}
	if len(held.Keys) < len(ids) {
		s.FSM.Notify() // a file may be gone, and is to be written again
	}
	return held, nil
}

// How many keys one question is about, first and at most.
const (
	askFirst  = 64
	askAtOnce = 4096
)

// AskAbout asks the servers live about any number of keys. An answer holds for all of the keys: a server that does not
// answer about some of them has not answered.
func (s *Server) AskAbout(ctx context.Context, servers []string, keys []*meta.Key) map[string]plan.Answer {
	var ids []meta.KeyID
	for _, key := range keys {
		ids = append(ids, key.ID)
	}
	return peer.All(ctx, servers, func(ctx context.Context, server string) (plan.Answer, error) {
		return s.askAll(ctx, server, ids)
	}, nil)
}

// askAll asks one server about all of the keys. A question that it does not answer in time is followed by a smaller one.
func (s *Server) askAll(ctx context.Context, server string, ids []meta.KeyID) (plan.Answer, error) {
	var a plan.Answer
	if server == string(s.ID) {
		held, err := s.HeldHere(ctx, ids)
		return plan.Answer{Keystore: held.Keystore, Held: held.Keys}, err
	}
	for {
		n, err := InBatches(ctx, &s.asking, server, ids, func(ctx context.Context, batch []meta.KeyID) error {
			held, err := s.Patient.Held(ctx, server, batch)
			if err != nil {
				return err
			}
			if a.Keystore != (meta.KeystoreID{}) && held.Keystore != a.Keystore {
				return fmt.Errorf("server %s has another keystore now", server)
			}
			a.Keystore, a.Held = held.Keystore, append(a.Held, held.Keys...)
			return nil
		})
		ids = ids[n:]
		if err == nil {
			return a, nil
		}
		if late, ok := errors.AsType[LateError](err); !ok || late.Keys == 1 {
			return plan.Answer{}, err
		}
	}
}

// ServeFetch hands out the material of keys that are held here and were not removed. A key that the ring
// does not know is handed out by a leader alone, which may be about to add it: a server that is behind may
// take one for a member that was removed before the key was made.
func (s *Server) ServeFetch(ids []meta.KeyID) ([]peer.Secret, error) {
	leads := s.Leading() == nil // first: then the ring has at least what the barrier had
	ring := s.FSM.Ring()
	var secrets []peer.Secret
	for _, id := range ids {
		a, ok := s.Store.Copy(id)
		if !ok {
			continue
		}
		if key := ring.Key(id); !ring.WasRemoved(id) && (key == nil && leads || key != nil && key.Check == a.Check) {
			secrets = append(secrets, peer.NewSecret(id, a.Check, a.Secret.Encode()))
		}
		a.Secret.Wipe()
	}
	return secrets, nil
}
