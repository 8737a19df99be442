package docs_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/node"
)

// TestKEKsPageMakesAKEKFile that FileKEK takes, and nobody else may read.
func TestKEKsPageMakesAKEKFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kek")
	for _, line := range commands(t, "docs/keks.md", "kek-file") {
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(line, "/etc/myservice/kek", path)).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := keyring.FileKEK(path); err != nil {
		t.Error(err)
	}
}

// hsmClient is that of the hardware module, with the error of all its calls.
type hsmClient struct {
	keyring.KEK
	err error
}

func (c *hsmClient) Encrypt(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	return c.Wrap(ctx, plaintext, aad)
}

func (c *hsmClient) Decrypt(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	if c.err != nil {
		return nil, c.err
	}
	return c.Unwrap(ctx, wrapped, aad)
}

var (
	errNotMine = errors.New("not a ciphertext of this slot")
	errDenied  = errors.New("permission denied")
	errBusy    = errors.New("too many requests")
)

type hsm struct{ client *hsmClient }

func (h hsm) ID() string { return "hsm:slot-3/keyring" }

func (h hsm) Wrap(ctx context.Context, plaintext, aad []byte) ([]byte, error) {
	b, err := h.client.Encrypt(ctx, plaintext, aad)
	return b, classified(err)
}

func (h hsm) Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error) {
	b, err := h.client.Decrypt(ctx, wrapped, aad)
	return b, classified(err)
}

// classified says what the keyring wants to know. Any other error means that the KEK can't be reached.
func classified(err error) error {
	switch {
	case errors.Is(err, errNotMine):
		return keyring.ErrDecrypt // not what this KEK wrapped for that aad
	case errors.Is(err, errDenied):
		return fmt.Errorf("%w: %w", keyring.ErrKEKRefused, err) // trying again does not help
	case errors.Is(err, errBusy):
		return fmt.Errorf("%w: %w", keyring.ErrKEKThrottled, err)
	}
	return err
}

// TestKEKsPageOwnKEK: a key that was wrapped under it opens at the next start, and what its errors make of its state, and of
// Status, is what the table of the page says.
func TestKEKsPageOwnKEK(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	module := hsm{&hsmClient{KEK: kektest.File(t, kektest.CountingKey())}}
	n := startForPage(t, node.Config{Dir: dir, KEKs: []keyring.KEK{module}})
	sealed, err := n.Encrypt(ctx, []byte("secret"), nil)
	if err := errors.Join(err, n.Close()); err != nil {
		t.Fatal(err)
	}
	n = startForPage(t, node.Config{Dir: dir, KEKs: []keyring.KEK{module}})
	if got, err := n.Decrypt(ctx, sealed, nil); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	module.client.err = errNotMine
	if _, err := module.Unwrap(ctx, nil, nil); !errors.Is(err, keyring.ErrDecrypt) {
		t.Error(err)
	}

	page := keyringtest.Pages(t)["docs/keks.md"]
	spare := anotherKEK(t)
	for _, tt := range []struct {
		fails error
		keks  []keyring.KEK
		want  keyring.KEKState
	}{
		{errDenied, []keyring.KEK{module, spare}, keyring.KEKRefuses},
		{errBusy, []keyring.KEK{module, spare}, keyring.KEKThrottled},
		{errors.New("no route to host"), []keyring.KEK{module, spare}, keyring.KEKUnavailable},
		{nil, []keyring.KEK{spare}, keyring.KEKUnconfigured},
	} {
		module.client.err = tt.fails
		n := keyringtest.StartAlone(t, ctx, dir, tt.keks, nil)
		st, err := n.Keyring().Status(ctx)
		if err := errors.Join(err, n.Close()); err != nil {
			t.Fatal(err)
		}
		var state keyring.KEKState
		for _, k := range st.KEKs {
			if k.ID == module.ID() {
				state = k.State
			}
		}
		if state != tt.want {
			t.Errorf("%v: it %s: %+v", tt.fails, state, st.KEKs)
		}
		for _, p := range st.Problems {
			if p.KEK != module.ID() {
				continue
			}
			if row := fmt.Sprintf("(?m)^\\| `%s` \\|[^|]*\\| `%s` \\|$", state, p.Kind); !regexp.MustCompile(row).MatchString(page) {
				t.Errorf("the page has no row with %q and %q", state, p.Kind)
			}
		}
	}
}

// anotherKEK is another KEK than the module's.
func anotherKEK(t *testing.T) keyring.KEK {
	t.Helper()
	return kektest.File(t, append(kektest.CountingKey()[1:], 0xfe))
}

// TestKEKsPageChangesAKEK by the steps of the page.
func TestKEKsPageChangesAKEK(t *testing.T) {
	h := newKEKHost(t)
	before, after := kektest.File(t, kektest.CountingKey()), anotherKEK(t)
	sealed := h.start([]keyring.KEK{before}, nil, 0).seal()
	n := h.start([]keyring.KEK{after}, []keyring.KEK{before}, 1)
	n.rewrap()
	n.opens(sealed)
	h.start([]keyring.KEK{after}, nil, 0).opens(sealed)
}

// TestKEKsPagePutsEscrowBack: files that were written without it are counted, and have it after Rewrap.
func TestKEKsPagePutsEscrowBack(t *testing.T) {
	h := newKEKHost(t)
	identity := kektest.Identity(t)
	kek, escrow := kektest.File(t, kektest.CountingKey()), kektest.Age(t, identity)
	sealed := h.start([]keyring.KEK{kek}, nil, 0).seal()
	h.start([]keyring.KEK{kek, escrow}, nil, 1).rewrap()
	to := kektest.Identity(t) // the recipients are not those of before
	if !h.says([]keyring.KEK{anotherKEK(t), kektest.Age(t, to)}, []keyring.KEK{kektest.Age(t, to, identity)}, "no KEK ... or age:... is configured") {
		t.Error("Status does not say what the page quotes")
	}
	h.start([]keyring.KEK{anotherKEK(t), escrow}, []keyring.KEK{kektest.Age(t, identity, identity)}, 1).opens(sealed)
}

// kekHost is a server alone whose KEKs change from start to start.
type kekHost struct {
	*testing.T
	ctx  context.Context
	dir  string
	node *node.Node
}

func newKEKHost(t *testing.T) *kekHost {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return &kekHost{T: t, ctx: ctx, dir: t.TempDir()}
}

// start starts it again, and wants so many files on old KEKs.
func (h *kekHost) start(keks, old []keyring.KEK, onOld int) *kekHost {
	h.Helper()
	if h.node != nil {
		if err := h.node.Close(); err != nil {
			h.Fatal(err)
		}
	}
	h.node = keyringtest.StartAlone(h.T, h.ctx, h.dir, keks, old)
	if err := h.node.Keyring().WaitReady(h.ctx); err != nil {
		h.Fatal(err)
	}
	h.onOld(onOld)
	return h
}

// says reports whether Status has a problem with these KEKs as the page quotes it, with dots for what is left out.
func (h *kekHost) says(keks, old []keyring.KEK, quoted string) bool {
	h.Helper()
	if err := h.node.Close(); err != nil {
		h.Fatal(err)
	}
	h.node = keyringtest.StartAlone(h.T, h.ctx, h.dir, keks, old)
	st, err := h.node.Keyring().Status(h.ctx)
	if err != nil {
		h.Fatal(err)
	}
	said := regexp.MustCompile(strings.ReplaceAll(regexp.QuoteMeta(quoted), `\.\.\.`, ".+"))
	return strings.Contains(keyringtest.Pages(h)["docs/keks.md"], "`"+quoted+"`") &&
		slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool { return said.MatchString(p.Detail) })
}

func (h *kekHost) onOld(want int) {
	h.Helper()
	if st, err := h.node.Keyring().Status(h.ctx); err != nil || st.OnOldKEKs != want {
		h.Errorf("%d files on old KEKs, want %d: %v, %v", st.OnOldKEKs, want, st.Problems, err)
	}
}

func (h *kekHost) rewrap() {
	h.Helper()
	if err := h.node.Keyring().Rewrap(h.ctx); err != nil {
		h.Fatal(err)
	}
	h.onOld(0)
}

func (h *kekHost) seal() []byte {
	h.Helper()
	sealed, err := h.node.Encrypt(h.ctx, []byte("secret"), nil)
	if err != nil {
		h.Fatal(err)
	}
	return sealed
}

func (h *kekHost) opens(sealed []byte) {
	h.Helper()
	if got, err := h.node.Decrypt(h.ctx, sealed, nil); err != nil || string(got) != "secret" {
		h.Errorf("%q, %v", got, err)
	}
}

// TestKEKsPageHasTheBounds of the code.
func TestKEKsPageHasTheBounds(t *testing.T) {
	var keks []keyring.KEK
	for i := range constantOf(t, ".", "maxKEKs") {
		keks = append(keks, kektest.New(fmt.Sprint("kek ", i)))
	}
	if err := (keyring.Config{KEKs: keks}).Check(); err != nil {
		t.Error(err)
	}
	if err := (keyring.Config{KEKs: append(keks, keyring.InlineKEK())}).Check(); err == nil {
		t.Errorf("%d KEKs are taken", len(keks)+1)
	}
	for n, ok := range map[int]bool{0: false, 1: true, 128: true, 129: false} {
		if err := (keyring.Config{KEKs: []keyring.KEK{kektest.New(strings.Repeat("k", n))}}).Check(); (err == nil) != ok {
			t.Errorf("an ID of %d characters: %v", n, err)
		}
	}
	passphrase, err := keyring.PassphraseKEK([]byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	wrapped, err := passphrase.Wrap(t.Context(), []byte("key"), nil)
	if err != nil {
		t.Fatal(err)
	}
	kib := binary.BigEndian.Uint32(wrapped[5:]) // after the version and the passes: see internal/kek
	seconds := func(name string) time.Duration { return durationOf(t, "internal/kek/health.go", name) }
	const page = "docs/keks.md"
	checkFigures(t, []figure{
		{page, fmt.Sprintf("all of `Config.KEKs`, at most %d.", len(keks))},
		{page, fmt.Sprintf("`PassphraseKEK` uses %d MiB of memory", kib>>10)},
		{page, fmt.Sprintf("A call has %.0f seconds", seconds("timeout").Seconds())},
		{page, fmt.Sprintf("take longer than %.0f seconds", seconds("timeout").Seconds())},
		{page, fmt.Sprintf("up to %.0f seconds apart", seconds("maxProbeRetry").Seconds())},
		{page, fmt.Sprintf("probed every %.0f minutes", seconds("probeEvery").Minutes())},
		{page, fmt.Sprintf("The file of a `FileKEK` is checked every %.0f seconds", durationOf(t, "internal/replication/place.go", "placeEvery").Seconds())},
		{page, fmt.Sprintf("Within %.0f minutes `Status.OnOldKEKs`", seconds("probeEvery").Minutes())},
	})
}

// TestCodeNamesPagesThatAreThere: advice, errors and comments send somebody to a page of docs, and that is in the repository.
func TestCodeNamesPagesThatAreThere(t *testing.T) {
	pages, advised := keyringtest.Pages(t), 0
	for _, dir := range []string{"*", "*/*", "*/*/*"} {
		files, err := filepath.Glob(filepath.Join(keyringtest.Root(t), filepath.FromSlash(dir+".go")))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range regexp.MustCompile(`\bdocs/[\w-]+\.md\b`).FindAllString(string(b), -1) {
				if pages[name] == "" {
					t.Errorf("%s names %s, which is not there", file, name)
				}
				if filepath.Base(file) == "problems.go" {
					advised++
				}
			}
		}
	}
	if advised < 4 || !strings.Contains(pages["docs/keks.md"], "\n## When a KMS is gone for good\n") {
		t.Errorf("problems.go names %d pages; the chapter that it means may be gone", advised)
	}
}

// TestKEKsPageNamesTheWrappers that the example of module kms names, and no others.
func TestKEKsPageNamesTheWrappers(t *testing.T) {
	named := func(text, before string) (all []string) {
		for _, m := range regexp.MustCompile(before+`(\w+/v2)\b`).FindAllStringSubmatch(text, -1) {
			all = append(all, m[1])
		}
		slices.Sort(all)
		return all
	}
	page, example := named(keyringtest.Pages(t)["docs/keks.md"], "`"), named(keyringtest.TestFiles(t)["kms/example_test.go"], "wrappers/")
	if len(page) == 0 || !slices.Equal(page, example) {
		t.Errorf("the page names %v, and the example %v", page, example)
	}
}
