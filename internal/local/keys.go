package local

// Which keys servers hold, and how this one hands them out.

import (
	"context"
	"maps"
	"slices"

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
		return s.HeldHere(ids)
	}
	return s.Peers.Held(ctx, server, ids)
}

// HeldHere answers the live question from the disk, not from memory. About one key that it
// can't read at the moment it does not answer at all, for "no" may have the key dropped; among
// many, such a key is not held.
func (s *Server) HeldHere(ids []meta.KeyID) (peer.Held, error) {
	held := peer.Held{Keystore: s.Store.ID()}
	for _, id := range ids {
		here, err := s.Store.Confirm(id)
		if err != nil && len(ids) == 1 {
			s.Logger.Error("confirm key", "key", id, "error", err)
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

// askAtOnce is how many keys one question is about.
const askAtOnce = 4096

// AskAbout asks the servers live about any number of keys. One that has not answered is not asked again.
func (s *Server) AskAbout(ctx context.Context, servers []string, keys []*meta.Key) map[string]plan.Answer {
	answers := map[string]plan.Answer{}
	for batch := range slices.Chunk(keys, askAtOnce) {
		var ids []meta.KeyID
		for _, key := range batch {
			ids = append(ids, key.ID)
		}
		told := s.Ask(ctx, servers, ids, nil)
		for server, a := range told {
			a.Held = append(answers[server].Held, a.Held...)
			answers[server] = a
		}
		servers = slices.Sorted(maps.Keys(told))
	}
	return answers
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
