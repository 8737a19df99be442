package keyring_test

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/raft"
)

// callingApp is a host's FSM whose Apply calls its own server's keyring, which it must not.
type callingApp struct {
	*keyringtest.App
	call *atomic.Pointer[func()] // what the next Apply does
}

// Apply implements raft.FSM.
func (a callingApp) Apply(l *raft.Log) any {
	if call := a.call.Swap(nil); call != nil {
		(*call)()
	}
	return a.App.Apply(l)
}

// inApply has a server's FSM call something while raft applies nothing else, and waits for it.
func inApply(t *testing.T, s *keyringtest.Server, call func()) {
	t.Helper()
	s.App.(callingApp).call.Store(&call)
	if err := s.Raft.Apply([]byte("x"), 0).Error(); err != nil {
		t.Fatal(err)
	}
}

// TestCallsInApplyEndWithTheirContexts: those that wait until raft has applied something wait in vain, and no longer than they
// may. Those that take no context return at once. The server goes on.
func TestCallsInApplyEndWithTheirContexts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{
			Servers:   3,
			App:       func(*keyringtest.Server) raft.FSM { return callingApp{&keyringtest.App{}, &atomic.Pointer[func()]{}} },
			Configure: func(_ *keyringtest.Server, cfg *keyring.Config) { cfg.Rotation.Every, cfg.Data = -1, keyring.NoData{} },
		})
		leader := keyringtest.Ready(t, c)
		first := leader.Keyring.Keys()[0].ID
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		later, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{Publish: time.Now().Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitKeys(t, c)
		to := kektest.Identity(t).Recipient()
		for _, name := range slices.Sorted(maps.Keys(callsOfKeyring(leader, "", first, later.ID, to))) {
			leader = keyringtest.Ready(t, c) // a call may have it hand over
			calls := callsOfKeyring(leader, keyringtest.Follower(c).ID, first, later.ID, to)
			waits := slices.Contains([]string{"Backup", "ConfirmBackup", "Remove", "Rotate", "StartRemoval", "WriteBackup"}, name)
			inApply(t, leader, func() { wantEnds(t, name, calls[name], waits) })
		}
		leader = keyringtest.Ready(t, c)
		for name, call := range plainCalls(t, leader) {
			began := time.Now()
			inApply(t, leader, call)
			if took := time.Since(began); took > time.Second {
				t.Errorf("%s took %v", name, took)
			}
		}
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

// plainCalls are calls without a context.
func plainCalls(t *testing.T, s *keyringtest.Server) map[string]func() {
	t.Helper()
	k, token := s.Keyring, keyringtest.Sign(t, s)
	sealed, err := k.Encrypt([]byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
	return map[string]func(){
		"Admit":        func() { must(s.FSM.Admit(sealed)) },
		"Encrypt":      func() { _, err := k.Encrypt(nil, nil); must(err) },
		"Decrypt":      func() { _, err := k.Decrypt(sealed, nil); must(err) },
		"Sign":         func() { _, err := k.Sign(keyringtest.ClaimsForMe()); must(err) },
		"Verify":       func() { must(k.Verify(token, keyringtest.ForMe)) },
		"JWKS":         func() { k.JWKS() },
		"Keys":         func() { k.Keys(); k.JoinTokens(); k.Changed(); k.Notify() },
		"Leading":      func() { must(k.Leading()) },
		"EncodeStatus": func() { _, err := k.EncodeStatus(); must(err) },
	}
}

// TestStatusSaysThatACallInApplyWaits, of a call that has no deadline: nothing else ends it.
func TestStatusSaysThatACallInApplyWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := keyringtest.NewCluster(t, keyringtest.Options{App: func(*keyringtest.Server) raft.FSM { return callingApp{&keyringtest.App{}, &atomic.Pointer[func()]{}} }})
		leader := keyringtest.Ready(t, c)
		ctx, end := context.WithCancel(context.Background())
		rotated := make(chan error, 1)
		call := func() {
			_, err := leader.Keyring.Rotate(ctx, keyring.RotateOptions{})
			rotated <- err
		}
		leader.App.(callingApp).call.Store(&call)
		applied := leader.Raft.Apply([]byte("x"), 0)
		time.Sleep(time.Hour) // virtual
		if len(keyringtest.Problems(t, leader, keyring.ProblemHost)) == 0 || len(rotated) > 0 {
			t.Errorf("after an hour: %v", keyringtest.StatusOf(t, leader).Problems)
		}
		end()
		if err := <-rotated; err == nil {
			t.Error("it rotated")
		}
		if err := applied.Error(); err != nil {
			t.Error(err)
		}
	})
}
