package local_test

import (
	"context"
	"encoding/binary"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring/internal/local"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/peer"
	"github.com/hashicorp/raft"
)

// TestHoldersAreToldBySlowDisks: who holds thousands of keys is answered however long the disk takes for one of them, and
// a server that hangs is given up soon, and holds nobody up.
func TestHoldersAreToldBySlowDisks(t *testing.T) {
	for _, each := range []time.Duration{0, 100 * time.Microsecond, 5 * time.Millisecond, 50 * time.Millisecond, 1500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			keystore, calls := meta.KeystoreID{1}, 0
			slow := peer.Handlers{Held: func(ctx context.Context, ids []meta.KeyID) (peer.Held, error) {
				calls++
				for range ids {
					select {
					case <-time.After(each):
					case <-ctx.Done():
						return peer.Held{}, context.Cause(ctx)
					}
				}
				return peer.Held{Keystore: keystore, Keys: ids}, nil
			}}
			s := local.NewServer(local.Config{ID: "s1", Call: func(ctx context.Context, to raft.ServerID, request []byte) ([]byte, error) {
				if to == "hangs" {
					<-ctx.Done()
					return nil, context.Cause(ctx)
				}
				return slow.Answer(ctx, "s1", request)
			}})
			const n = 3651
			var keys []*meta.Key
			for i := range n {
				k := &meta.Key{}
				binary.BigEndian.PutUint64(k.ID[:], uint64(i+1))
				keys = append(keys, k)
			}
			began := time.Now()
			answers := s.AskAbout(t.Context(), []string{"slow", "hangs"}, keys)
			if a := answers["slow"]; len(a.Held) != n || a.Keystore != keystore {
				t.Errorf("%v a key: %d of %d keys are held", each, len(a.Held), n)
			}
			if _, answered := answers["hangs"]; answered {
				t.Error("a server that hangs has answered")
			}
			if took, most := time.Since(began), n*each+10*time.Second; took > most {
				t.Errorf("%v a key: %v, more than %v", each, took, most)
			}
			if each == 0 && calls > 10 {
				t.Errorf("%d calls", calls)
			}
		})
	}
}
