package scenarios_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/meta"
	"github.com/hashicorp/raft"
)

// proposal is an entry that was given to raft: a host's with data, or one of the keyring's that its FSM rejects.
type proposal struct {
	data   string
	future raft.ApplyFuture
}

// proposeAtOnce gives raft a hundred entries of the host's, with some of the keyring's between them and a rotation
// in the middle, so that raft makes batches of both kinds.
func proposeAtOnce(t *testing.T, leader *keyringtest.Host) (all []proposal) {
	t.Helper()
	bad := keyringtest.LogEntry(t, 0, meta.Command{Rekey: &meta.Rekey{ID: meta.KeyID{7}}})
	for i := range 100 {
		data := fmt.Sprintf("entry %d", i)
		all = append(all, proposal{data, leader.Raft.Apply([]byte(data), 0)})
		if i%10 == 3 {
			all = append(all, proposal{"", leader.Raft.ApplyLog(raft.Log{Data: bad.Data, Extensions: bad.Extensions}, 0)})
		}
		if i == 50 {
			if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

// checkAnswers checks that each proposal got its answer, and returns the host's data in order.
func checkAnswers(t *testing.T, all []proposal) (data []string) {
	t.Helper()
	for _, p := range all {
		if err := p.future.Error(); err != nil {
			t.Fatal(err)
		}
		if p.data == "" {
			if err, ok := p.future.Response().(error); !ok || !errors.Is(err, meta.ErrCommandRefused) {
				t.Errorf("a refused command of the keyring's is answered with %v", p.future.Response())
			}
			continue
		}
		data = append(data, p.data)
		if r := fmt.Sprintf("%d: %s", p.future.Index(), p.data); p.future.Response() != r {
			t.Errorf("%q is answered with %v, not %q", p.data, p.future.Response(), r)
		}
	}
	return data
}

// checkApp checks what a server's host was given: that text, the configurations and batches that it takes.
func checkApp(t *testing.T, id raft.ServerID, a *keyringtest.App, text string, stores, batches bool) {
	t.Helper()
	if got := a.Text(); got != text {
		t.Errorf("%s: the host has applied\n%s", id, got)
	}
	a.Mu.Lock()
	defer a.Mu.Unlock()
	if n := len(a.Configs); (n > 0) != (stores || batches) {
		t.Errorf("%s: %d configurations", id, n)
	} else if n > 0 && len(a.Configs[n-1].Servers) != 3 {
		t.Errorf("%s: the last configuration is %v", id, a.Configs[n-1])
	}
	if n := len(a.Batches); (n > 0) != batches {
		t.Errorf("%s: %d batches", id, n)
	}
}

func TestMuxCarriesBothThroughRaft(t *testing.T) {
	t.Parallel()
	for _, form := range keyringtest.AppForms {
		t.Run(form.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := keyringtest.NewHosts(t, 3)
				apps := map[*keyringtest.Host]*keyringtest.App{}
				for _, h := range hosts {
					apps[h] = &keyringtest.App{}
					h.Open(t, form.Of(apps[h]))
				}
				leader := keyringtest.LeaderOf(t, hosts)
				data := checkAnswers(t, proposeAtOnce(t, leader))
				if err := leader.Raft.Barrier(0).Error(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				for _, h := range hosts {
					checkApp(t, h.ID, apps[h], strings.Join(data, "\n"), form.Stores, form.Batches)
					if n := len(h.Keyring.Keys()); n != 2 {
						t.Errorf("%s: %d keys", h.ID, n)
					}
				}
			})
		})
	}
}

func TestHostEntryThatSpellsACommandIsTheHosts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts := keyringtest.NewHosts(t, 1)
		a := &keyringtest.App{}
		hosts[0].Open(t, a)
		leader := keyringtest.LeaderOf(t, hosts)
		key := leader.Keyring.Keys()[0]
		posing := keyringtest.LogEntry(t, 0, meta.Command{Forget: &meta.Forget{Servers: []string{string(leader.ID)}}})
		before := keyringtest.SnapshotOf(t, leader.FSM)
		f := leader.Raft.Apply(posing.Data, 0)
		if err := f.Error(); err != nil {
			t.Fatal(err)
		}
		if f.Response() != fmt.Sprintf("%d: %s", f.Index(), posing.Data) || a.Text() != string(posing.Data) {
			t.Errorf("the host was not given its entry: %v", f.Response())
		}
		if !bytes.Equal(keyringtest.SnapshotOf(t, leader.FSM), before) || !slices.Equal(leader.Keyring.Keys()[0].Holders, key.Holders) {
			t.Error("the keyring was given the host's entry")
		}
	})
}

func TestMuxedSnapshotRestoresBoth(t *testing.T) {
	t.Parallel()
	for _, form := range keyringtest.AppForms {
		t.Run(form.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := keyringtest.NewHosts(t, 1)
				apps := map[*keyringtest.Host]*keyringtest.App{}
				start := func(h *keyringtest.Host) {
					apps[h] = &keyringtest.App{}
					h.Open(t, form.Of(apps[h]))
				}
				start(hosts[0])
				leader := keyringtest.LeaderOf(t, hosts)
				sealed, err := leader.Keyring.Encrypt([]byte("data"), nil)
				if err != nil {
					t.Fatal(err)
				}
				apply := func(data string) {
					if err := leader.Raft.Apply([]byte(data), 0).Error(); err != nil {
						t.Fatal(err)
					}
				}
				apply("one")
				if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
					t.Fatal(err)
				}
				if err := leader.Raft.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
				apply("two")

				leader.Stop(t)
				start(leader)
				keyringtest.LeaderOf(t, hosts)
				wantBoth(t, leader, leader, apps[leader], sealed)

				joiner := keyringtest.NewHost(t, "joiner", &hosts)
				start(joiner)
				if err := leader.Raft.AddVoter(joiner.ID, raft.ServerAddress(joiner.ID), 0, 0).Error(); err != nil {
					t.Fatal(err)
				}
				if err := joiner.Keyring.WaitReady(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				if list, err := joiner.Snaps.List(); err != nil || len(list) == 0 {
					t.Errorf("the joiner was sent no snapshot (%v)", err)
				}
				wantBoth(t, joiner, leader, apps[joiner], sealed)
			})
		})
	}
}

// wantBoth wants a host to have what was applied, and what the leader's ring has.
func wantBoth(t *testing.T, h, leader *keyringtest.Host, app *keyringtest.App, sealed []byte) {
	t.Helper()
	if got := app.Text(); got != "one\ntwo" {
		t.Errorf("%s: the host has %q", h.ID, got)
	}
	if got, err := h.Keyring.Decrypt(sealed, nil); err != nil || string(got) != "data" {
		t.Errorf("%s: %q, %v", h.ID, got, err)
	}
	if !bytes.Equal(keyringtest.SnapshotOf(t, h.FSM), keyringtest.SnapshotOf(t, leader.FSM)) {
		t.Errorf("%s: another ring", h.ID)
	}
}

func TestSnapshotAndLogFromBeforeTheMuxAreTheHosts(t *testing.T) {
	t.Parallel()
	for _, snapshot := range []bool{false, true} {
		t.Run(fmt.Sprintf("snapshot=%v", snapshot), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hosts := keyringtest.NewHosts(t, 1)
				h, before := hosts[0], &keyringtest.App{}
				h.Run(t, before)
				keyringtest.LeaderOf(t, hosts)
				for i := range 5 {
					if err := h.Raft.Apply(fmt.Appendf(nil, "entry %d", i), 0).Error(); err != nil {
						t.Fatal(err)
					}
					if snapshot && i == 2 {
						if err := h.Raft.Snapshot().Error(); err != nil {
							t.Fatal(err)
						}
					}
				}
				h.Stop(t)

				after := &keyringtest.App{}
				h.Open(t, after)
				keyringtest.LeaderOf(t, hosts)
				if after.Text() != before.Text() || before.Text() == "" {
					t.Errorf("the host had %q and has %q", before.Text(), after.Text())
				}
				sealed, err := h.Keyring.Encrypt([]byte("data"), nil)
				if err != nil {
					t.Fatal(err)
				}
				if err := h.Raft.Snapshot().Error(); err != nil {
					t.Fatal(err)
				}
				h.Stop(t)
				again := &keyringtest.App{}
				h.Open(t, again)
				keyringtest.LeaderOf(t, hosts)
				if _, err := h.Keyring.Decrypt(sealed, nil); err != nil || again.Text() != before.Text() {
					t.Errorf("after the first muxed snapshot: %v, the host has %q", err, again.Text())
				}
			})
		})
	}
}
