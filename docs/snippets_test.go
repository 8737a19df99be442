package docs_test

import (
	"bytes"
	"context"
	"errors"
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
	"filippo.io/age"
)

// The functions below hold snippets of docs/tokens.md, docs/keks.md and docs/operations.md to the letter.

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

// TestReadmeCredential uses a systemd credential as docs/keks.md does.
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

// TestReadmeRecoversFromALostKMS follows the steps of docs/keks.md on a real directory: the KMS dies, the
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
