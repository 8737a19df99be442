package keyring_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"example.com/keyring"
	"github.com/hashicorp/raft"
)

// The functions below hold the README's snippets to the letter, so that they compile.

func readmeAlone(ctx context.Context, dir string) error {
	node, err := keyring.Start(ctx, keyring.NodeConfig{
		Dir:  dir,
		KEKs: []keyring.KEK{keyring.InlineKEK()},
	})
	if err != nil {
		return err
	}
	defer node.Close()
	if err := node.Keyring().WaitReady(ctx); err != nil {
		return err
	}
	sealed, err := node.Encrypt(ctx, []byte("secret"), []byte("users/7"))
	if err != nil {
		return err
	}
	plaintext, err := node.Decrypt(ctx, sealed, []byte("users/7"))
	if err == nil && string(plaintext) != "secret" {
		return errors.New("not what was sealed")
	}
	return err
}

func loadTLS() (*tls.Config, error) { return nil, errors.New("not in a test") }

func readmeCluster(ctx context.Context) error {
	kek, err := keyring.FileKEK("/etc/myservice/kek")
	if err != nil {
		return err
	}
	node, err := keyring.Start(ctx, keyring.NodeConfig{
		ID:      "s1",
		Dir:     "/var/lib/myservice",
		KEKs:    []keyring.KEK{kek},
		Addr:    "10.0.0.1:7900",
		Cluster: "prod",
		TLS:     func() (*tls.Config, error) { return loadTLS() },
		Peers: map[raft.ServerID]string{
			"s1": "10.0.0.1:7900", "s2": "10.0.0.2:7900", "s3": "10.0.0.3:7900",
		},
	})
	if err != nil {
		return err
	}
	return node.Close()
}

func readmeOwnRaft(ctx context.Context, conf *raft.Config, dir string, kek keyring.KEK, peers keyring.Transport) error {
	logs, stable, snapshots, transport := inmem(conf.LocalID)
	keys := keyring.NewFSM()
	r, err := raft.NewRaft(conf, keys, logs, stable, snapshots, transport)
	if err != nil {
		return err
	}
	k, err := keyring.Open(ctx, keyring.Config{
		Dir:       filepath.Join(dir, "keystore"),
		ID:        conf.LocalID,
		Raft:      r,
		FSM:       keys,
		Transport: peers, // calls the other server, which hands the request to ServePeer
		KEKs:      []keyring.KEK{kek},
	})
	if err != nil {
		return errors.Join(err, r.Shutdown().Error())
	}
	return errors.Join(k.Close(), r.Shutdown().Error())
}

func readmeMux(conf *raft.Config) error {
	logs, stable, snapshots, transport := inmem(conf.LocalID)
	keys := keyring.NewFSM()
	app := &secrets{keys: keys}
	r, err := raft.NewRaft(conf, keyring.Mux(keys, app), logs, stable, snapshots, transport)
	if err != nil {
		return err
	}
	return r.Shutdown().Error()
}

func inmem(id raft.ServerID) (raft.LogStore, raft.StableStore, raft.SnapshotStore, raft.Transport) {
	store := raft.NewInmemStore()
	_, transport := raft.NewInmemTransport(raft.ServerAddress(id))
	return store, store, raft.NewInmemSnapshotStore(), transport
}

type secrets struct {
	keys   *keyring.FSM
	stored [][]byte
}

func (s *secrets) Apply(l *raft.Log) any {
	if err := s.keys.Admit(l.Data); err != nil {
		return err // ErrStaleKey: the writer seals again and retries
	}
	s.stored = append(s.stored, l.Data)
	return nil
}

func (s *secrets) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("not in a test") }
func (s *secrets) Restore(io.ReadCloser) error         { return errors.New("not in a test") }

var snippet = regexp.MustCompile("(?s)<!-- snippet: (\\w+) -->\n```go\n(.*?)```")

// TestReadmeSnippetsCompile finds every snippet of the README in this file.
func TestReadmeSnippetsCompile(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("readme_test.go")
	if err != nil {
		t.Fatal(err)
	}
	found := snippet.FindAllStringSubmatch(string(readme), -1)
	if blocks := strings.Count(string(readme), "```go"); len(found) != blocks || blocks == 0 {
		t.Errorf("%d of %d Go blocks are named snippets", len(found), blocks)
	}
	dedented := strings.ReplaceAll(string(self), "\n\t", "\n")
	for _, m := range found {
		if !strings.Contains(string(self), m[2]) && !strings.Contains(dedented, m[2]) {
			t.Errorf("snippet %s is not in readme_test.go", m[1])
		}
	}
}

// TestReadmeSnippetsRun runs those that need no cluster.
func TestReadmeSnippetsRun(t *testing.T) {
	conf := raft.DefaultConfig()
	conf.LocalID, conf.LogOutput = "s1", io.Discard
	if err := readmeAlone(t.Context(), t.TempDir()); err != nil {
		t.Error(err)
	}
	if err := readmeOwnRaft(t.Context(), conf, t.TempDir(), keyring.InlineKEK(), nil); err != nil {
		t.Error(err)
	}
	if err := readmeMux(conf); err != nil {
		t.Error(err)
	}
	if err := readmeCluster(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a KEK file that is not there: %v", err)
	}
}
