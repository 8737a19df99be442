package docs_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// openOwn starts a keyring on a host's own raft and transport.
func openOwn(ctx context.Context, conf *raft.Config, r *raft.Raft, fsm *keyring.FSM, dir string, peers keyring.Transport, kek keyring.KEK) (*keyring.Keyring, error) {
	k, err := keyring.Open(ctx, keyring.Config{
		Dir:       filepath.Join(dir, "keystore"),
		ID:        conf.LocalID,
		Raft:      r,
		FSM:       fsm,
		Transport: peers, // its Call reaches the server whose host calls ServePeer
		KEKs:      []keyring.KEK{kek},
	})
	return k, err
}

// TestOwnTransport opens three keyrings on it, each of which decrypts what the leader has encrypted.
func TestOwnTransport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // virtual
		defer cancel()
		var open sync.Map
		for _, s := range inmemRafts(t, 3) {
			k, err := openOwn(ctx, s.conf, s.raft, s.fsm, t.TempDir(), direct{s.conf.LocalID, &open}, keyring.InlineKEK())
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			open.Store(s.conf.LocalID, k)
		}
		decryptEverywhere(ctx, t, &open, 3)
	})
}

// inmemRaft is a server of a host, with raft in memory.
type inmemRaft struct {
	conf *raft.Config
	raft *raft.Raft
	fsm  *keyring.FSM
}

// inmemRafts starts n of them, which are a cluster.
func inmemRafts(t *testing.T, n int) (servers []inmemRaft) {
	t.Helper()
	var first raft.Configuration
	var transports []*raft.InmemTransport
	for i := range n {
		addr, trans := raft.NewInmemTransport("")
		transports = append(transports, trans)
		first.Servers = append(first.Servers, raft.Server{ID: raft.ServerID(fmt.Sprintf("s%d", i+1)), Address: addr})
	}
	for i, s := range first.Servers {
		for _, other := range transports {
			transports[i].Connect(other.LocalAddr(), other)
		}
		conf, store, snapshots, fsm := raft.DefaultConfig(), raft.NewInmemStore(), raft.NewInmemSnapshotStore(), keyring.NewFSM()
		conf.LocalID, conf.Logger = s.ID, hclog.NewNullLogger()
		if err := raft.BootstrapCluster(conf, store, store, snapshots, transports[i], first); err != nil {
			t.Fatal(err)
		}
		r, err := raft.NewRaft(conf, fsm, store, store, snapshots, transports[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Shutdown().Error() })
		servers = append(servers, inmemRaft{conf, r, fsm})
	}
	return servers
}

// decryptEverywhere waits until n keyrings are ready, has the leader encrypt, and all of them decrypt that.
func decryptEverywhere(ctx context.Context, t *testing.T, keyrings *sync.Map, n int) {
	t.Helper()
	var sealed []byte
	for _, k := range keyrings.Range {
		k := k.(*keyring.Keyring)
		if err := k.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		keyringtest.AwaitHolders(k, k.Keys()[0].ID, n)
		if b, err := k.Encrypt([]byte("secret"), nil); err == nil {
			sealed = b
		} else if !errors.Is(err, keyring.ErrNotLeader) {
			t.Error(err)
		}
	}
	for id, k := range keyrings.Range {
		if got, err := k.(*keyring.Keyring).Decrypt(sealed, nil); err != nil || string(got) != "secret" {
			t.Errorf("%s: %q, %v", id, got, err)
		}
	}
}

// TestTransportNamesTests: the tests in the table of the page are there, and those of the examples run them.
func TestTransportNamesTests(t *testing.T) {
	_, table, _ := strings.Cut(keyringtest.Pages(t)["docs/transport.md"], "\n## What every transport must guarantee")
	table, _, _ = strings.Cut(table, "\n## ")
	there, named := testNames(t), regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(table, -1)
	if len(named) < 12 {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, m := range named {
		if !there[m[1]] {
			t.Errorf("there is no %s", m[1])
		}
	}
}
