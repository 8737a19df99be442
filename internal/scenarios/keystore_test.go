package scenarios_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// TestHolderIsNobodyWhoseNamesDoNotSync: a follower whose directory can't be synced sees its
// file all the same, reads it back, and is no holder. When the directory syncs again it
// becomes one, and a crash then takes nothing away.
func TestHolderIsNobodyWhoseNamesDoNotSync(t *testing.T) {
	t.Parallel()
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts, leader := keyringtest.OpenHosts(t, 3)
				keyringtest.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 3)
				f := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != leader })]
				broken := func(op keyringtest.Op) keyringtest.Fault {
					if op.Kind == "dirsync" {
						return keyringtest.Fault{Err: syscall.EIO}
					}
					return keyringtest.Fault{}
				}
				f.Disk.OnOp(broken)
				key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Minute)
				f.CheckHolds(t, "while it does not sync")
				if keyringtest.Ring(f.FSM).Key(meta.KeyID(key.ID)).HeldBy(string(f.ID)) {
					t.Error("it is recorded as a holder")
				}
				if restart { // of the process: the disk has the name, not yet durable
					if f.Disk.Bytes(nks.FileName(key.ID)) == nil {
						t.Fatal("the file is not there to be found")
					}
					f.Stop(t)
					f.Open(t, nil)
				} else {
					f.Disk.OnOp(nil)
				}
				time.Sleep(5 * time.Minute)
				if restart {
					f.CheckHolds(t, "restarted, and it does not sync yet")
					f.Disk.OnOp(nil)
					time.Sleep(5 * time.Minute)
				}
				keyringtest.AwaitHolders(f.Keyring, key.ID, 3)
				f.CheckHolds(t, "when it syncs again")
				checkTidy(t, f.Disk, "at the end")
			})
		})
	}
}

// TestRestartedServerHoldsOnlyWhatItHasSynced: the process dies between the rename of a key
// file and the sync of its directory, the machine lives on, and dies when the next process
// has reported itself a holder.
func TestRestartedServerHoldsOnlyWhatItHasSynced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts, leader := keyringtest.OpenHosts(t, 3)
		keyringtest.AwaitHolders(leader.Keyring, leader.Keyring.Keys()[0].ID, 3)
		f := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != leader })]
		f.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
			if op.Kind == "dirsync" {
				return keyringtest.Fault{Err: syscall.EIO}
			}
			return keyringtest.Fault{}
		})
		key, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for f.Disk.Bytes(nks.FileName(key.ID)) == nil {
			time.Sleep(time.Second)
		}
		f.Stop(t)
		f.Disk.OnOp(nil)
		f.Open(t, nil)
		keyringtest.AwaitHolders(f.Keyring, key.ID, 3)
		f.CheckHolds(t, "restarted")
	})
}

// keystoreID is the keystore that the ring has on record for a server.
func keystoreID(h *keyringtest.Host) (id meta.KeystoreID) {
	id, _ = keyringtest.Ring(h.FSM).Keystore(string(h.ID))
	return id
}

func TestKeystoreIDIsKeptAndAWipedServerHasAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts, leader := keyringtest.OpenHosts(t, 3)
		key := leader.Keyring.Keys()[0].ID
		keyringtest.AwaitHolders(leader.Keyring, key, 3)
		f := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != leader })]
		id := keystoreID(f)
		restart := func(d *keyringtest.Disk) meta.KeystoreID {
			t.Helper()
			f.Stop(t)
			f.Disk = d
			f.Open(t, nil)
			time.Sleep(time.Minute)
			keyringtest.AwaitHolders(leader.Keyring, key, 3)
			if st := f.Status(t); !st.Ready {
				t.Errorf("not ready: %v", st.Problems)
			}
			f.CheckHolds(t, "restarted")
			return keystoreID(f)
		}
		if got := restart(f.Disk); got != id || id == (meta.KeystoreID{}) {
			t.Errorf("restarted: %x, it was %x", got, id)
		}
		wiped := restart(keyringtest.NewDisk())
		if wiped == id {
			t.Error("a wiped server has the ID it had")
		}
		seen := map[meta.KeystoreID]bool{id: true, wiped: true}
		for name, content := range map[string]string{
			"empty": "", "short": "00112233", "no newline": strings.Repeat("ab", 16), "not hex": strings.Repeat("xy", 16) + "\n",
			"two lines": strings.Repeat("ab", 16) + "\n\n", "huge": strings.Repeat("x", 1<<20),
		} {
			f.Disk.Plant("keystore.id", 0o600, []byte(content))
			got := restart(f.Disk)
			if seen[got] {
				t.Errorf("%s: an ID that was there before", name)
			}
			seen[got] = true
			st := f.Status(t)
			if len(st.SetAside) != 1 || string(f.Disk.Bytes(st.SetAside[0])) != content || !strings.HasPrefix(st.SetAside[0], "keystore.id.") {
				t.Errorf("%s: set aside %v", name, st.SetAside)
			}
		}
	})
}

func TestReadErrorAtStartSetsNothingAside(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"open", "read"} {
		synctest.Test(t, func(t *testing.T) {
			l := keyringtest.NewLife(t)
			l.Start()
			if err := errors.Join(l.Seal(), l.Rotate(), l.Seal()); err != nil {
				t.Fatal(err)
			}
			l.Stop(t)
			l.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if op.Kind == kind && strings.HasSuffix(op.Name, ".nks.json") {
					return keyringtest.Fault{Err: syscall.EIO}
				}
				return keyringtest.Fault{}
			})
			files := keyringtest.KeyFiles(l.Disk)
			l.Open(t, nil)
			time.Sleep(10 * time.Second)
			if st := l.Status(t); len(st.SetAside) > 0 || len(st.Missing) != 2 || fmt.Sprint(keyringtest.KeyFiles(l.Disk)) != fmt.Sprint(files) {
				t.Errorf("%s: %v", kind, st.Problems)
			}
			l.Disk.OnOp(nil)
			keyringtest.LeaderOf(t, l.Hosts)
			l.Vault.CheckOpens(t, l.Keyring, kind)
		})
	}
}
