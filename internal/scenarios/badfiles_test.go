package scenarios_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

// badFiles are what may lie in a key file's place. good is what was there, another the file
// of another key.
func badFiles(good, another []byte) map[string]struct {
	mode fs.FileMode
	data []byte
} {
	type file = struct {
		mode fs.FileMode
		data []byte
	}
	files := map[string]file{
		"empty":          {0o600, nil},
		"zeros":          {0o600, make([]byte, len(good))},
		"text":           {0o600, []byte("hello")},
		"longer":         {0o600, append(bytes.Clone(good), '\n')},
		"another key's":  {0o600, another},
		"oversized":      {0o600, bytes.Repeat([]byte("x"), nks.MaxFile+1)},
		"an odd version": {0o600, withVersion(good, "0")},
	}
	for i := 1; i < len(good); i += len(good)/9 + 1 {
		files[fmt.Sprintf("cut to %d bytes", i)] = file{0o600, good[:i]}
	}
	for i := 0; i < len(good); i += len(good)/40 + 1 {
		flipped := bytes.Clone(good)
		flipped[i] ^= 1 << (i % 8)
		files[fmt.Sprintf("bit %d of byte %d flipped", i%8, i)] = file{0o600, flipped}
	}
	return files
}

// TestBadFileIsSetAsideAndHidesNoOther is one start for each kind of bad file, beside good
// ones whose names sort before and after.
func TestBadFileIsSetAsideAndHidesNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		for range 4 {
			if err := errors.Join(l.Seal(), l.Rotate()); err != nil {
				t.Fatal(err)
			}
		}
		keys := l.Keyring.Keys()
		l.Stop(t)
		bad := keys[2].ID
		name := nks.FileName(bad)
		good, another := l.Disk.Bytes(name), l.Disk.Bytes(nks.FileName(keys[3].ID))
		log, before := l.Log, l.Disk
		rest := maps.Clone(l.Vault)
		delete(rest, bad)
		for what, file := range badFiles(good, another) {
			l.Log, l.Disk = copyLog(t, log), before.Crash(keyringtest.Kept, 0)
			l.Disk.Plant(name, file.mode, file.data)
			l.Start()
			rest.CheckOpens(t, l.Keyring, what)
			if _, err := l.Keyring.Decrypt(l.Vault[bad][0], []byte("aad")); !errors.Is(err, keyring.ErrKeyMissing) {
				t.Errorf("%s: under the lost key: %v", what, err)
			}
			st := l.Status(t)
			if len(st.SetAside) != 1 || !strings.HasPrefix(st.SetAside[0], name+".") || !slices.Equal(st.Missing, []keyring.KeyID{bad}) {
				t.Errorf("%s: set aside %v, missing %v", what, st.SetAside, st.Missing)
			} else if kept := l.Disk.Bytes(st.SetAside[0]); !bytes.Equal(kept, file.data) {
				t.Errorf("%s: %d bytes are kept of %d", what, len(kept), len(file.data))
			}
			if l.Disk.Bytes(name) != nil {
				t.Errorf("%s: it is still there", what)
			}
			if err := l.Rotate(); err != nil {
				t.Errorf("%s: rotate: %v", what, err)
			}
			l.Stop(t)

			// The operator puts the file back.
			l.Disk.Plant(name, 0o600, good)
			l.Start()
			l.Vault.CheckOpens(t, l.Keyring, what+", put back")
			l.Stop(t)
		}
	})
}

// TestBarredFileIsTakenWhenItIsRight: what keeps a server from reading a file, an operator mends. Until then it is left as it
// is, and named; then it is taken within a minute, without a restart.
func TestBarredFileIsTakenWhenItIsRight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		if err := errors.Join(l.Seal(), l.Rotate(), l.Seal()); err != nil {
			t.Fatal(err)
		}
		id := l.Keyring.Keys()[1].ID
		name := nks.FileName(id)
		good := l.Disk.Bytes(name)
		for _, bar := range []struct {
			mode fs.FileMode
			err  error // of opening it
			kind keyring.ProblemKind
		}{
			{0, nil, keyring.ProblemFileMode},
			{0o600, &durable.OwnerError{Have: 1000, Want: 7}, keyring.ProblemFileOwner},
			{fs.ModeSymlink | 0o777, nil, keyring.ProblemNotAFile},
			{fs.ModeNamedPipe | 0o600, nil, keyring.ProblemNotAFile},
			{fs.ModeDir | 0o700, nil, keyring.ProblemNotAFile},
		} {
			l.Stop(t)
			l.Disk.Plant(name, bar.mode, good)
			l.Disk.OnOp(func(op keyringtest.Op) keyringtest.Fault {
				if op.Kind == "open" && op.Name == name {
					return keyringtest.Fault{Err: bar.err}
				}
				return keyringtest.Fault{}
			})
			before := l.Disk.Names()
			l.Start()
			time.Sleep(time.Hour)
			st := l.Status(t)
			i := slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == bar.kind })
			if i < 0 || !slices.Equal(st.Problems[i].Keys, []keyring.KeyID{id}) || !slices.Equal(st.Missing, []keyring.KeyID{id}) {
				t.Errorf("%v: missing %v, problems %v", bar, st.Missing, st.Problems)
			} else if p := st.Problems[i]; bar.err != nil && !(strings.Contains(p.Detail, "user 1000, not by user 7") && strings.Contains(p.Advice, "chown 7 ")) {
				t.Errorf("it does not name both owners and the command: %+v", p)
			}
			if !slices.Equal(l.Disk.Names(), before) {
				t.Errorf("%v: there is %v, there was %v", bar, l.Disk.Names(), before)
			}
			l.Disk.OnOp(nil)
			l.Disk.Plant(name, 0o600, good)
			time.Sleep(time.Minute)
			l.Vault.CheckOpens(t, l.Keyring, "mended")
			if st := l.Status(t); len(st.Missing) > 0 || slices.ContainsFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == bar.kind }) {
				t.Errorf("%v: mended: missing %v, problems %v", bar, st.Missing, st.Problems)
			}
		}
	})
}

// TestKeyOfABadFileIsFetchedAgain in a cluster of three.
func TestKeyOfABadFileIsFetchedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts, leader := keyringtest.OpenHosts(t, 3)
		v := keyringtest.Sealings{}
		for range 2 {
			b, err := leader.Keyring.Encrypt([]byte("data"), []byte("aad"))
			if err != nil {
				t.Fatal(err)
			}
			id, _ := keyring.CiphertextKeyID(b)
			v[id] = append(v[id], b)
			if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, k := range leader.Keyring.Keys() {
			keyringtest.AwaitHolders(leader.Keyring, k.ID, 3)
		}
		f := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != leader })]
		keys := leader.Keyring.Keys()
		bad := nks.FileName(keys[1].ID)
		good, another := f.Disk.Bytes(bad), f.Disk.Bytes(nks.FileName(keys[2].ID))
		for what, file := range badFiles(good, another) {
			if strings.Contains(what, "bit ") && !strings.Contains(what, "bit 0 ") {
				continue
			}
			f.Stop(t)
			f.Disk.Plant(bad, file.mode, file.data)
			f.Open(t, nil)
			time.Sleep(time.Minute)
			v.CheckOpens(t, f.Keyring, what)
			st := f.Status(t)
			if len(st.SetAside) != 1 || len(st.Missing) != 0 {
				t.Errorf("%s: set aside %v, missing %v", what, st.SetAside, st.Missing)
				continue
			}
			if kept := f.Disk.Bytes(st.SetAside[0]); !bytes.Equal(kept, file.data) {
				t.Errorf("%s: %d bytes are kept of %d", what, len(kept), len(file.data))
			}
			keyringtest.AwaitHolders(f.Keyring, keys[1].ID, 3)
			f.CheckHolds(t, what)
		}
	})
}

// TestFileOfAnotherKeyUnderThatIDIsSetAside: a whole, well wrapped file, of other material
// than the ring's.
func TestFileOfAnotherKeyUnderThatIDIsSetAside(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := keyringtest.NewLife(t)
		l.Start()
		if err := errors.Join(l.Seal(), l.Rotate(), l.Seal()); err != nil {
			t.Fatal(err)
		}
		wrong := l.Keyring.Keys()[1].ID
		l.Stop(t)
		keyringtest.PlantKey(t, l.Disk, wrong, keyring.InlineKEK())
		planted := l.Disk.Bytes(nks.FileName(wrong))
		l.Start()
		if _, err := l.Keyring.Decrypt(l.Vault[wrong][0], []byte("aad")); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("decrypt: %v", err)
		}
		st := l.Status(t)
		if len(st.SetAside) != 1 || !bytes.Equal(l.Disk.Bytes(st.SetAside[0]), planted) {
			t.Errorf("set aside: %v", st.SetAside)
		}
		delete(l.Vault, wrong)
		l.Vault.CheckOpens(t, l.Keyring, "the other key")
	})
}

// laterVersion is a key file as a later version has it, as far as this build can know.
func laterVersion(good []byte) []byte { return withVersion(good, fmt.Sprint(nks.FileVersion+1)) }

// withVersion is a key file with another number for its version.
func withVersion(good []byte, version string) []byte {
	return slices.Concat([]byte("{\n  \"Version\": "+version), good[bytes.IndexByte(good, ','):])
}

// TestKeyFileOfANewerVersionIsLeftAlone: a server that is taken back to this build keeps what the newer one has
// written, says so, and gets the key from nobody in its place. The newer build finds its file.
func TestKeyFileOfANewerVersionIsLeftAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hosts, leader := keyringtest.OpenHosts(t, 3)
		sealed, err := leader.Keyring.Encrypt([]byte("data"), []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		id, _ := keyring.CiphertextKeyID(sealed)
		if _, err := leader.Keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, k := range leader.Keyring.Keys() {
			keyringtest.AwaitHolders(leader.Keyring, k.ID, 3)
		}
		f := hosts[slices.IndexFunc(hosts, func(h *keyringtest.Host) bool { return h != leader })]
		name := nks.FileName(id)
		f.Stop(t)
		good := f.Disk.Bytes(name)
		f.Disk.Plant(name, 0o600, laterVersion(good))
		f.Open(t, nil)
		time.Sleep(time.Hour)
		st := f.Status(t)
		i := slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemNewer })
		if i < 0 || !slices.Equal(st.Problems[i].Keys, []keyring.KeyID{id}) || !strings.Contains(st.Problems[i].Advice, "newer build") {
			t.Errorf("problems: %v", st.Problems)
		}
		if len(st.SetAside) > 0 || !slices.Equal(st.Missing, []keyring.KeyID{id}) || !bytes.Equal(f.Disk.Bytes(name), laterVersion(good)) {
			t.Errorf("set aside %v, missing %v, it is there: %t", st.SetAside, st.Missing, bytes.Equal(f.Disk.Bytes(name), laterVersion(good)))
		}
		if _, err := f.Keyring.Decrypt(sealed, []byte("aad")); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("decrypt: %v", err)
		}
		f.Stop(t)
		f.Disk.Plant(name, 0o600, good) // what the newer build reads
		f.Open(t, nil)
		time.Sleep(time.Minute)
		keyringtest.Sealings{id: {sealed}}.CheckOpens(t, f.Keyring, "with the build that wrote it")
	})
}

func TestInspectSaysWhichFilesAreNewer(t *testing.T) {
	dir, id := t.TempDir(), keyring.KeyID{1}
	good, _ := keyringtest.NewKeyFile(t, id, keyring.InlineKEK())
	for name, b := range map[string][]byte{nks.FileName(id): laterVersion(good), "keystore.id": []byte("v2\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	reports, err := keyring.Inspect(t.Context(), dir, keyring.InlineKEK())
	if err != nil || len(reports) != 2 {
		t.Fatal(reports, err)
	}
	for _, r := range reports {
		if !errors.Is(r.Err, nks.ErrVersion) || !strings.Contains(r.Err.Error(), "start the newer build") {
			t.Errorf("%s: %v", r.Name, r.Err)
		}
	}
}
