package docs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/admin"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"example.com/keyring/port"
	"example.com/keyring/records"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// The functions below hold the snippets of the README and of the pages to the letter, so that they compile.

func readmeAlone(ctx context.Context, dir string) error {
	n, err := node.Start(ctx, node.Config{
		Dir:  dir,
		KEKs: []keyring.KEK{keyring.InlineKEK()},
	})
	if err != nil {
		return err
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(ctx); err != nil {
		return err
	}
	sealed, err := n.Encrypt(ctx, []byte("secret"), []byte("users/7"))
	if err != nil {
		return err
	}
	plaintext, err := n.Decrypt(ctx, sealed, []byte("users/7"))
	if err == nil && string(plaintext) != "secret" {
		return errors.New("not what was sealed")
	}
	return err
}

func readmeCluster(ctx context.Context) error {
	kek, err := keyring.FileKEK("/etc/myservice/kek")
	if err != nil {
		return err
	}
	n, err := node.Start(ctx, node.Config{
		ID:      "s1",
		Dir:     "/var/lib/myservice",
		KEKs:    []keyring.KEK{kek},
		Addr:    "10.0.0.1:7900",
		Cluster: "prod",
		TLS:     keyring.TLSFiles("/etc/myservice/tls.crt", "/etc/myservice/tls.key", "/etc/myservice/ca.crt"),
		Peers: map[raft.ServerID]string{
			"s1": "10.0.0.1:7900", "s2": "10.0.0.2:7900", "s3": "10.0.0.3:7900",
		},
	})
	if err != nil {
		return err
	}
	return n.Close()
}

func readmeCredential() (keyring.KEK, error) {
	kek, err := keyring.FileKEK(filepath.Join(os.Getenv("CREDENTIALS_DIRECTORY"), "kek"))
	return kek, err
}

func readmeTokens(ctx context.Context, n *node.Node) error {
	token, err := n.Sign(ctx, map[string]any{"sub": "prod/job/web", "aud": "consul.example"})
	if err != nil {
		return err
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	want := keyring.Expect{Audience: []string{"consul.example"}}
	if err := n.Keyring().Verify(token, want, &claims); err != nil {
		return err // matches ErrToken
	}
	if claims.Subject != "prod/job/web" {
		return errors.New("not what was signed")
	}
	return nil
}

func readmeWellKnown(mux *http.ServeMux, n *node.Node) {
	mux.Handle("/.well-known/", n.Keyring().WellKnown())
}

func readmeAdmin(mux *http.ServeMux, n *node.Node, operatorOf func(*http.Request) (string, error)) error {
	h, err := admin.New(n, admin.Config{Authorize: operatorOf})
	if err != nil {
		return err
	}
	mux.Handle("/keyring/", http.StripPrefix("/keyring", h))
	return nil
}

func readmeIssuers(mux *http.ServeMux, n *node.Node) {
	mux.Handle("new.example.com/.well-known/", n.Keyring().WellKnownFor("https://new.example.com"))
	mux.Handle("old.example.com/.well-known/", n.Keyring().WellKnownFor("https://old.example.com"))
}

// readmeEscrow is a server in production, for as long as use takes.
func readmeEscrow(ctx context.Context, dir string, kms keyring.KEK, recipientsFile io.Reader, use func(*node.Node) error) error {
	recipients, err := age.ParseRecipients(recipientsFile) // one a line, as for age -R
	if err != nil {
		return err
	}
	escrow, err := keyring.AgeKEK(recipients)
	if err != nil {
		return err
	}
	n, err := node.Start(ctx, node.Config{
		Dir:  dir,
		KEKs: []keyring.KEK{kms, escrow},
	})
	if err != nil {
		return err
	}
	return errors.Join(use(n), n.Close())
}

func readmeRecover(ctx context.Context, dir string, newKEK, escrow keyring.KEK, recipients []age.Recipient, identityFile io.Reader, use func(*node.Node) error) error {
	identities, err := age.ParseIdentities(identityFile)
	if err != nil {
		return err
	}
	wayBack, err := keyring.AgeKEK(recipients, identities...)
	if err != nil {
		return err
	}
	n, err := node.Start(ctx, node.Config{
		Dir:     dir,
		KEKs:    []keyring.KEK{newKEK, escrow},
		OldKEKs: []keyring.KEK{wayBack},
	})
	if err != nil {
		return err
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(ctx); err != nil {
		return err
	}
	if err := n.Keyring().Rewrap(ctx); err != nil {
		return err // not all files are moved: Status says why; call it again
	}
	return use(n)
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

func readmePort(ctx context.Context, conf *raft.Config, dir string, kek keyring.KEK) error {
	logs, stable, snapshots, _ := inmem(conf.LocalID)
	p, err := port.Listen(port.Config{
		ID:      conf.LocalID,
		Cluster: "prod",
		Addr:    "10.0.0.1:7900",
		TLS:     keyring.TLSFiles("/etc/myservice/tls.crt", "/etc/myservice/tls.key", "/etc/myservice/ca.crt"),
	})
	if err != nil {
		return err
	}
	keys := keyring.NewFSM()
	app := &secrets{keys: keys}
	r, err := raft.NewRaft(conf, keyring.Mux(keys, app), logs, stable, snapshots, p.RaftTransport(logs, keys))
	if err != nil {
		return err
	}
	k, err := p.Open(ctx, keyring.Config{
		Dir:  filepath.Join(dir, "keystore"),
		Raft: r,
		FSM:  keys,
		KEKs: []keyring.KEK{kek},
	})
	return errors.Join(err, k.Close(), r.Shutdown().Error(), p.Close())
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

// readmeRecords starts a server alone whose FSM is a Map, and stores a secret.
func readmeRecords(ctx context.Context, dir string, secret []byte) (*node.Node, *records.Map, error) {
	keys := keyring.NewFSM()
	m := records.New(keys)
	n, err := node.Start(ctx, node.Config{
		Dir:  dir,
		KEKs: []keyring.KEK{keyring.InlineKEK()},
		App:  m, Keys: keys, Data: m,
	})
	if err != nil {
		return nil, nil, err
	}
	m.Connect(n.Keyring(), n.Apply)
	if err := n.Keyring().WaitReady(ctx); err != nil {
		return n, m, err
	}
	_, err = m.Put(ctx, records.Write{Name: "db/password", Parts: [][]byte{secret}, If: new(uint64(0))}) // only if there is none
	return n, m, err
}

func (s *secrets) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("not in a test") }
func (s *secrets) Restore(io.ReadCloser) error         { return errors.New("not in a test") }

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
	if err := readmePort(t.Context(), conf, t.TempDir(), keyring.InlineKEK()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a certificate that is not there: %v", err)
	}
	if err := readmeCluster(t.Context()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a KEK file that is not there: %v", err)
	}
}

// TestReadmeFullRotation moves the records of a Node's Map, and removes their key.
func TestReadmeFullRotation(t *testing.T) {
	ctx := t.Context()
	n, m, err := readmeRecords(ctx, t.TempDir(), []byte("secret"))
	if n != nil {
		defer n.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	keys := n.Keyring()
	for i := range 600 {
		if _, err := m.Put(ctx, records.Write{Name: fmt.Sprint("path/", i), Parts: [][]byte{[]byte("secret")}}); err != nil {
			t.Fatal(err)
		}
	}
	old := keys.Keys()[0].ID
	if _, err := n.Rotate(ctx, keyring.RotateOptions{Full: true}); err != nil {
		t.Fatal(err)
	}
	if err := keys.Remove(ctx, old, keyring.RemoveOptions{Now: true}); err != nil {
		t.Fatal(err)
	}
	if left := keys.Keys(); len(left) != 1 || left[0].ID == old || m.View().Len() != 601 {
		t.Errorf("%d keys, %d records", len(left), m.View().Len())
	}
	for r := range m.View().All("") {
		if _, got, err := m.Open(r.Name); err != nil || string(got[0]) != "secret" {
			t.Errorf("%s: %q, %v", r.Name, got, err)
		}
	}
}

// TestReadmeTokens: a token is signed, verified, and its key served, for each issuer.
func TestReadmeTokens(t *testing.T) {
	issuer := "https://keys.example.com"
	n, err := node.Start(t.Context(), node.Config{
		Dir: t.TempDir(), KEKs: []keyring.KEK{keyring.InlineKEK()}, Tokens: keyring.TokenPolicy{
			Issuer: issuer, Algorithm: "EdDSA", AcceptIssuers: []string{"https://new.example.com", "https://old.example.com"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := n.Keyring().WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := readmeTokens(t.Context(), n); err != nil {
		t.Error(err)
	}
	mux := http.NewServeMux()
	readmeWellKnown(mux, n)
	readmeIssuers(mux, n)
	if err := readmeAdmin(mux, n, func(*http.Request) (string, error) { return "alice", nil }); err != nil {
		t.Error(err)
	}
	for path, want := range map[string]string{
		"/keyring/": "<title>Keys</title>", "/keyring/v1/status": `"ready":true`,
		"/.well-known/jwks.json": n.Keyring().Keys()[0].ID.String(), "/.well-known/openid-configuration": issuer + "/.well-known/jwks.json",
		"http://new.example.com/.well-known/openid-configuration": "https://new.example.com/.well-known/jwks.json",
		"http://old.example.com/.well-known/openid-configuration": "https://old.example.com/.well-known/jwks.json",
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

// TestReadmeCredential uses a systemd credential as the README does.
func TestReadmeCredential(t *testing.T) {
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(kektest.WriteFile(t, kektest.CountingKey())))
	kek, err := readmeCredential()
	if err != nil || kek.ID() != kektest.File(t, kektest.CountingKey()).ID() {
		t.Errorf("%v, %v", kek, err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", t.TempDir())
	if _, err := readmeCredential(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no credential: %v", err)
	}
}

// TestReadmeRecoversFromALostKMS follows the README's steps on a real directory: the KMS dies, the
// identity comes out of the safe and goes back, and all that was ever sealed opens.
func TestReadmeRecoversFromALostKMS(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir, lost, identity := t.TempDir(), kektest.NewVault(t, 1), kektest.Identity(t)
	bobs := kektest.Identity(t).Recipient().String()
	recipientsFile := func() io.Reader {
		return strings.NewReader("# in two safes\n" + identity.Recipient().String() + "\n" + bobs + "\n")
	}

	var sealed [][]byte
	seals := func(n *node.Node) error {
		if err := n.Keyring().WaitReady(ctx); err != nil {
			return err
		}
		for range 3 {
			b, err := n.Encrypt(ctx, []byte("data"), nil)
			if err != nil {
				return err
			}
			sealed = append(sealed, b)
			if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
				return err
			}
		}
		return nil
	}
	opens := func(n *node.Node) error {
		if err := n.Keyring().WaitReady(ctx); err != nil {
			return err
		}
		st, err := n.Keyring().Status(ctx)
		if err != nil || st.OnOldKEKs != 0 || len(st.Problems) > 0 {
			t.Errorf("%d on old KEKs, %v, %v", st.OnOldKEKs, st.Problems, err)
		}
		for i, b := range sealed {
			if got, err := n.Decrypt(ctx, b, nil); err != nil || string(got) != "data" {
				t.Errorf("%d: %q, %v", i, got, err)
			}
		}
		return nil
	}
	if err := readmeEscrow(ctx, dir, lost, recipientsFile(), seals); err != nil {
		t.Fatal(err)
	}
	lost.Set(kektest.Outages["fails"])
	locked := func(n *node.Node) error {
		keyringtest.AwaitHolders(n.Keyring(), keyOf(t, sealed[0]), 0)
		if _, err := n.Keyring().Decrypt(sealed[0], nil); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("the KMS is dead and it opens: %v", err)
		}
		return nil
	}
	if err := readmeEscrow(ctx, dir, lost, recipientsFile(), locked); err != nil {
		t.Fatal(err)
	}

	newKEK := kektest.File(t, bytes.Repeat([]byte{5}, 32))
	recipients, err := age.ParseRecipients(recipientsFile())
	if err != nil {
		t.Fatal(err)
	}
	escrow, err := keyring.AgeKEK(recipients)
	if err != nil {
		t.Fatal(err)
	}
	half := recipients[:1] // the other safe is forgotten
	kek, err := keyring.AgeKEK(half, identity)
	if err != nil {
		t.Fatal(err)
	}
	n := keyringtest.StartAlone(t, ctx, dir, []keyring.KEK{newKEK}, []keyring.KEK{kek})
	if st, err := n.Keyring().Status(ctx); err != nil || !slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool {
		return p.Detail == "no KEK vault or "+escrow.ID()+" is configured"
	}) {
		t.Errorf("with other recipients: %v, %v", st.Problems, err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}

	both := func(n *node.Node) error { return errors.Join(opens(n), seals(n)) }
	if err := readmeRecover(ctx, dir, newKEK, escrow, recipients, strings.NewReader(identity.String()), both); err != nil {
		t.Fatal(err)
	}
	if err := readmeEscrow(ctx, dir, newKEK, recipientsFile(), opens); err != nil {
		t.Error(err)
	}

	// Escrow stands beside the new KEK: it may be lost just as well.
	if err := readmeRecover(ctx, dir, kektest.NewVault(t, 3), escrow, recipients, strings.NewReader(identity.String()), opens); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func keyOf(t *testing.T, sealed []byte) keyring.KeyID {
	t.Helper()
	id, err := keyring.CiphertextKeyID(sealed)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
