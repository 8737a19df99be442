package docs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/constant"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"iter"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
	"github.com/hashicorp/raft"
)

// startForPage starts a server alone for the snippets of a page.
func startForPage(t *testing.T, cfg node.Config) *node.Node {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	if cfg.KEKs == nil {
		cfg.KEKs = []keyring.KEK{keyring.InlineKEK()}
	}
	if cfg.Tokens.Algorithm == "" {
		cfg.Tokens.Algorithm = "EdDSA"
	}
	n, err := node.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	if err := n.Keyring().WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	return n
}

func rotateAhead(ctx context.Context, n *node.Node) (keyring.Key, error) {
	key, err := n.Rotate(ctx, keyring.RotateOptions{Publish: time.Now().Add(5 * time.Minute)})
	return key, err
}

// TestKeysPageRotatesAhead: the key is in the JWKS, and the one before goes on to encrypt and sign.
func TestKeysPageRotatesAhead(t *testing.T) {
	n := startForPage(t, node.Config{})
	before, err := n.Keyring().ActiveKey()
	if err != nil {
		t.Fatal(err)
	}
	key, err := rotateAhead(t.Context(), n)
	if err != nil || key.State != keyring.StatePrepublished || !strings.Contains(string(n.Keyring().JWKS()), key.ID.String()) {
		t.Errorf("%+v, %v", key, err)
	}
	sealed, err := n.Encrypt(t.Context(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := keyring.CiphertextKeyID(sealed); err != nil || id != before.ID {
		t.Errorf("encrypted under %s, %v", id, err)
	}
}

func fullAndRemove(ctx context.Context, n *node.Node, old keyring.KeyID) error {
	if _, err := n.Rotate(ctx, keyring.RotateOptions{Full: true}); err != nil {
		return err
	}
	if err := n.Remove(ctx, old, keyring.RemoveOptions{}); err != nil { // waits until the data has moved
		return err
	}
	return nil
}

// untilMoved waits until a full rotation is done.
func untilMoved(ctx context.Context, k *keyring.Keyring) error {
	moving := func(k keyring.Key) bool { return k.State == keyring.StateInactive || k.State == keyring.StateRekeying }
	for changed := k.Changed(); slices.ContainsFunc(k.Keys(), moving); changed = k.Changed() {
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// tableData is a database of the host's. Under yields all of it, as a host without an index does.
type tableData struct {
	mu     sync.Mutex
	byName map[string][]byte
}

func (t *tableData) rows() map[string][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.byName)
}

func (t *tableData) Under(_ context.Context, _ keyring.KeyID) iter.Seq2[keyring.Sealed, error] {
	return func(yield func(keyring.Sealed, error) bool) {
		for name, ciphertext := range t.rows() {
			if !yield(keyring.Sealed{Ref: name, Ciphertext: ciphertext, AAD: []byte(name)}, nil) {
				return
			}
		}
	}
}

func (t *tableData) Replace(_ context.Context, batch []keyring.Replacement) (conflicts int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range batch {
		if !bytes.Equal(t.byName[r.Ref], r.Ciphertext) {
			conflicts++
			continue
		}
		t.byName[r.Ref] = bytes.Clone(r.New)
	}
	return conflicts, nil
}

// TestKeysPageMovesATable to the new key, and then the old one is gone.
func TestKeysPageMovesATable(t *testing.T) {
	ctx, rows := t.Context(), &tableData{byName: map[string][]byte{}}
	n := startForPage(t, node.Config{Data: rows})
	for i := range 600 {
		name := fmt.Sprint("row ", i)
		sealed, err := n.Encrypt(ctx, []byte("secret"), []byte(name))
		if err != nil {
			t.Fatal(err)
		}
		rows.byName[name] = sealed
	}
	old, err := n.Keyring().ActiveKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := fullAndRemove(ctx, n, old.ID); err != nil {
		t.Fatal(err)
	}
	keys := n.Keyring().Keys()
	if len(keys) != 1 || keys[0].ID == old.ID {
		t.Errorf("%+v", keys)
	}
	for name, sealed := range rows.rows() {
		if got, err := n.Decrypt(ctx, sealed, []byte(name)); err != nil || string(got) != "secret" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if _, err := n.Rotate(ctx, keyring.RotateOptions{Full: true}); err != nil {
		t.Fatal(err)
	}
	if err := untilMoved(ctx, n.Keyring()); err != nil {
		t.Fatal(err)
	}
	active, err := n.Keyring().ActiveKey()
	if err != nil {
		t.Fatal(err)
	}
	for name, sealed := range rows.rows() {
		if id, err := keyring.CiphertextKeyID(sealed); err != nil || id != active.ID {
			t.Errorf("%s is still under %s, %v", name, id, err)
		}
	}
}

// rotatesFirst is a Node on which somebody rotates just before the first command is applied.
type rotatesFirst struct {
	*node.Node
	rotated bool
}

func (n *rotatesFirst) Apply(ctx context.Context, cmd []byte) (any, error) {
	if !n.rotated {
		n.rotated = true
		if _, err := n.Rotate(ctx, keyring.RotateOptions{}); err != nil {
			return nil, err
		}
	}
	return n.Node.Apply(ctx, cmd)
}

func storeBehindTheFence(ctx context.Context, n *rotatesFirst, secret []byte, name string) error {
	err := n.EncryptTo(ctx, secret, []byte(name), func(ctx context.Context, ciphertext []byte) error {
		_, err := n.Apply(ctx, ciphertext) // the App's Apply asks Admit
		return err
	})
	return err
}

// fencedApp stores the ciphertexts that Admit takes.
type fencedApp struct {
	keys            *keyring.FSM
	stored, refused [][]byte
}

func (a *fencedApp) Apply(l *raft.Log) any {
	if err := a.keys.Admit(l.Data); err != nil {
		a.refused = append(a.refused, l.Data)
		return err
	}
	a.stored = append(a.stored, l.Data)
	return nil
}

func (a *fencedApp) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.ErrUnsupported }
func (a *fencedApp) Restore(io.ReadCloser) error         { return errors.ErrUnsupported }

// TestKeysPageStoresBehindTheFence: what was encrypted before the rotation is refused, and stored under the new key.
func TestKeysPageStoresBehindTheFence(t *testing.T) {
	app := &fencedApp{keys: keyring.NewFSM()}
	n := &rotatesFirst{Node: startForPage(t, node.Config{App: app, Keys: app.keys, Data: keyring.NoData{}})}
	if err := storeBehindTheFence(t.Context(), n, []byte("secret"), "db/password"); err != nil {
		t.Fatal(err)
	}
	if len(app.refused) != 1 || len(app.stored) != 1 {
		t.Fatalf("%d refused, %d stored", len(app.refused), len(app.stored))
	}
	active, err := n.Keyring().ActiveKey()
	if err != nil {
		t.Fatal(err)
	}
	if id, err := keyring.CiphertextKeyID(app.stored[0]); err != nil || id != active.ID {
		t.Errorf("stored under %s, %v", id, err)
	}
	if got, err := n.Decrypt(t.Context(), app.stored[0], []byte("db/password")); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestKeysPageSaysWhatZeroMeans, and what is refused, of a RotationPolicy.
func TestKeysPageSaysWhatZeroMeans(t *testing.T) {
	n := startForPage(t, node.Config{})
	st, err := n.Status(t.Context())
	if err != nil || len(st.Keys) != 1 {
		t.Fatalf("%+v, %v", st.Keys, err)
	}
	every := st.NextRotation.Sub(st.Keys[0].Activated)
	w := httptest.NewRecorder()
	startForPage(t, node.Config{Rotation: keyring.RotationPolicy{Every: 4 * time.Minute}}).Keyring().WellKnown().
		ServeHTTP(w, httptest.NewRequest("GET", "/.well-known/jwks.json", nil))
	if cached := w.Header().Get("Cache-Control"); cached != "public, max-age=120" { // for Lead, half of Every
		t.Errorf("the JWKS is cached as %q", cached)
	}
	lead, undo := durationOf(t, "config.go", "defaultLead"), durationOf(t, "config.go", "defaultUndo")
	const page = "docs/keys.md"
	checkFigures(t, []figure{
		{page, fmt.Sprintf("| `Every` | from one activation to the next | %.0f days |", every.Hours()/24)},
		{page, fmt.Sprintf("| %.0f hours, or half of `Every` if that is less |", lead.Hours())},
		{page, fmt.Sprintf("| `Undo` | how long the file of a removed key is kept aside | %.0f days |", undo.Hours()/24)},
		{page, fmt.Sprintf("at most %d records and %d MiB in a batch", constantOf(t, ".", "batchRecords"), constantOf(t, ".", "batchBytes")>>20)},
	})
	for what, tt := range map[string]struct {
		policy keyring.RotationPolicy
		data   keyring.SealedData
		ok     bool
	}{
		"only Rotate rotates":      {keyring.RotationPolicy{Every: -1}, nil, true},
		"unlinked at once":         {keyring.RotationPolicy{Undo: -1}, nil, true},
		"a negative Lead":          {keyring.RotationPolicy{Lead: -1}, nil, false},
		"a negative Retain":        {keyring.RotationPolicy{Retain: -time.Hour}, keyring.NoData{}, false},
		"Retain":                   {keyring.RotationPolicy{Retain: time.Hour}, keyring.NoData{}, true},
		"Retain without Data":      {keyring.RotationPolicy{Retain: time.Hour}, nil, false},
		"a second":                 {keyring.RotationPolicy{Every: 2 * time.Second, Lead: time.Second, Undo: time.Second}, nil, true},
		"Every less than a second": {keyring.RotationPolicy{Every: time.Second - 1}, nil, false},
		"Undo less than a second":  {keyring.RotationPolicy{Undo: time.Second - 1}, nil, false},
	} {
		err := keyring.Config{KEKs: []keyring.KEK{keyring.InlineKEK()}, Rotation: tt.policy, Data: tt.data}.Check()
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// durationOf is the value of a constant in a file of the repository, in whose expression there are no other names than those of
// package time.
func durationOf(t *testing.T, file, name string) time.Duration {
	t.Helper()
	source, err := os.ReadFile(filepath.Join(keyringtest.Root(t), filepath.FromSlash(file)))
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, file, source, 0)
	if err != nil {
		t.Fatal(err)
	}
	var expr string
	ast.Inspect(parsed, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == len(spec.Names) {
			for i, id := range spec.Names {
				if v := spec.Values[i]; id.Name == name {
					expr = string(source[fset.Position(v.Pos()).Offset:fset.Position(v.End()).Offset])
				}
			}
		}
		return true
	})
	clock := types.NewPackage("time", "time")
	for unit, d := range map[string]time.Duration{"Millisecond": time.Millisecond, "Second": time.Second, "Minute": time.Minute, "Hour": time.Hour} {
		clock.Scope().Insert(types.NewConst(token.NoPos, clock, unit, types.Typ[types.Int64], constant.MakeInt64(int64(d))))
	}
	in := types.NewPackage("constants", "constants")
	in.Scope().Insert(types.NewPkgName(token.NoPos, in, "time", clock))
	value, err := types.Eval(fset, in, token.NoPos, expr)
	if err != nil || value.Value == nil {
		t.Fatalf("%s: %s is %q: %v", file, name, expr, err)
	}
	n, exact := constant.Int64Val(constant.ToInt(value.Value))
	if !exact {
		t.Fatalf("%s: %s is %s", file, name, value.Value)
	}
	return time.Duration(n)
}
