package scenarios_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/simulated"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// TestBackupUnderLoadIsConsistent: records are stored, keys rotate and are removed for good while
// backups are made. Each of them opens all that its snapshot holds.
func TestBackupUnderLoadIsConsistent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rc := keyringtest.NewRecordsCluster(t, 3, false, nil)
		leader := keyringtest.Ready(t, rc.Cluster)
		identity := kektest.Identity(t)
		ctx, stop := context.WithCancel(t.Context())
		var load sync.WaitGroup
		load.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				ref := fmt.Sprint("record/", n%200)
				err := leader.Keyring.EncryptTo(ctx, []byte(ref), []byte(ref), func(_ context.Context, c []byte) error {
					errs, err := keyringtest.PutRecords(leader.Raft, keyringtest.RecordPut{Ref: ref, New: c})
					return errors.Join(append(errs, err)...)
				})
				if err != nil {
					t.Error(err)
				}
				time.Sleep(time.Millisecond) // virtual
			}
		})
		removed := 0
		load.Go(func() {
			for ctx.Err() == nil {
				old := keyringtest.Ring(leader.FSM).Active().ID
				if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Error(err)
				}
				if err := leader.Keyring.Remove(t.Context(), old, keyring.RemoveOptions{Now: true}); err != nil {
					t.Error(err)
				}
				removed++
				time.Sleep(7 * time.Millisecond) // virtual
			}
		})
		var files [][]byte
		for range 12 {
			time.Sleep(50 * time.Millisecond) // virtual
			var out bytes.Buffer
			if _, err := leader.Keyring.Backup(t.Context(), &out, identity.Recipient()); err != nil {
				t.Fatal(err)
			}
			files = append(files, out.Bytes())
		}
		stop()
		load.Wait()
		if removed < 12 {
			t.Errorf("only %d keys were removed", removed)
		}
		rc.Close()
		for _, file := range files {
			opensAll(t, file, identity)
		}
	})
}

// opensAll restores a backup to a fresh server and opens all records.
func opensAll(t *testing.T, file []byte, identity age.Identity) {
	t.Helper()
	disk := keyringtest.NewDisk()
	fsys, err := disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	var snapshot bytes.Buffer
	o := keyring.RestoreOptions{
		Dir: "simulated", KEKs: []keyring.KEK{keyring.InlineKEK()}, Identities: []age.Identity{identity}, Unauthenticated: true, Snapshot: &snapshot,
	}
	m, err := keyring.Restore(simulated.WithDisk(t.Context(), fsys), bytes.NewReader(file), o)
	if err != nil {
		t.Fatal(err)
	}
	c := keyringtest.NewCluster(t, keyringtest.Options{
		Disk: func(raft.ServerID) *keyringtest.Disk { return disk },
		App: func(s *keyringtest.Server) raft.FSM {
			return &keyringtest.Records{Keys: s.FSM, All: map[string][]byte{}}
		},
	})
	leader := keyringtest.Ready(t, c)
	if err := leader.Raft.Restore(&m.Raft, &snapshot, time.Minute); err != nil {
		t.Fatal(err)
	}
	all := leader.App.(*keyringtest.Records).Copy()
	if len(all) == 0 {
		t.Error("there are no records")
	}
	for ref, c := range all {
		if got, err := leader.Keyring.Decrypt(c, []byte(ref)); err != nil || string(got) != ref {
			t.Errorf("backup of index %d: %s: %q, %v", m.Raft.Index, ref, got, err)
		}
	}
	c.Close()
}
