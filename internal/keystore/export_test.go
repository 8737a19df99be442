package keystore

import (
	"context"

	"example.com/keyring/internal/meta"
)

// QueuedPuts counts the calls of Put that wait to be written.
func (s *Store) QueuedPuts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.queue)
}

// Rewrite makes keys durable again that are in memory.
func (s *Store) Rewrite(ctx context.Context, ids ...meta.KeyID) []error {
	return s.rewrite(ctx, ids...)
}

// TakeBackAny gives the file of a key its name again that was set aside when the key was removed.
func (s *Store) TakeBackAny(id meta.KeyID) error { return s.takeBack(id) }

// PutLive is Put of one key, and returns the memory that it was proven in.
func (s *Store) PutLive(k Key) (live [][]byte, err error) {
	p := &putRequest{ctx: context.Background(), keys: []Key{k}}
	if p.files, p.errs = s.encodeAll(p.ctx, p.keys); p.errs[0] != nil {
		return nil, p.errs[0]
	}
	live = [][]byte{p.files[0].m.secret.Root()[:], p.files[0].m.secret.Signing()}
	s.writing.Lock()
	defer s.writing.Unlock()
	s.writeBatchLocked([]*putRequest{p})
	return live, p.errs[0]
}

// Drop takes a key out of memory.
func (s *Store) Drop(id meta.KeyID) { s.drop(id) }

// FromNomad are the keys that are in memory only, from files of Nomad's, and their check values.
func (s *Store) FromNomad() map[meta.KeyID][32]byte {
	keys := map[meta.KeyID][32]byte{}
	for id, m := range s.all() {
		if m.fromNomad {
			keys[id] = m.check
		}
	}
	return keys
}

// In the tests of this package every start that has synced a file notes it.
func init() { manySynced = 1 }
