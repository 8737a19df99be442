package keyring_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/keyring"
	"example.com/keyring/internal/keyringtest"
	"example.com/keyring/internal/nks"
)

// laterVersion is a key file as a later version has it, as far as this build can know.
func laterVersion(good []byte) []byte {
	return bytes.Replace(good, []byte(`"Version": 1,`), []byte(`"Version": 2,`), 1)
}

// TestKeyFileOfANewerVersionIsLeftAlone: a server that is taken back to this build keeps what the newer one has
// written, says so, and gets the key from nobody in its place. The newer build finds its file.
func TestKeyFileOfANewerVersionIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hosts := newHosts(t, 3)
		for _, h := range hosts {
			h.open(t, nil)
		}
		leader := leaderOf(t, hosts)
		sealed, err := leader.keyring.Encrypt([]byte("data"), []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		id, _ := keyring.CiphertextKeyID(sealed)
		if _, err := leader.keyring.Rotate(t.Context(), keyring.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
		for _, k := range leader.keyring.Keys() {
			keyring.AwaitHolders(leader.keyring, k.ID, 3)
		}
		f := hosts[slices.IndexFunc(hosts, func(h *host) bool { return h != leader })]
		name := nks.FileName(id)
		f.stop(t)
		good := f.disk.Bytes(name)
		f.disk.Plant(name, 0o600, laterVersion(good))
		f.open(t, nil)
		time.Sleep(time.Hour)
		st := f.status(t)
		i := slices.IndexFunc(st.Problems, func(p keyring.Problem) bool { return p.Kind == keyring.ProblemNewer })
		if i < 0 || st.Problems[i].Key != id || !strings.Contains(st.Problems[i].Advice, "newer build") {
			t.Errorf("problems: %v", st.Problems)
		}
		if len(st.SetAside) > 0 || !slices.Equal(st.Missing, []keyring.KeyID{id}) || !bytes.Equal(f.disk.Bytes(name), laterVersion(good)) {
			t.Errorf("set aside %v, missing %v, it is there: %t", st.SetAside, st.Missing, bytes.Equal(f.disk.Bytes(name), laterVersion(good)))
		}
		if _, err := f.keyring.Decrypt(sealed, []byte("aad")); !errors.Is(err, keyring.ErrKeyMissing) {
			t.Errorf("decrypt: %v", err)
		}
		f.stop(t)
		f.disk.Plant(name, 0o600, good) // what the newer build reads
		f.open(t, nil)
		time.Sleep(time.Minute)
		sealings{id: {sealed}}.opens(t, f.keyring, "with the build that wrote it")
	})
}

// TestNewerFileIsNotWrittenOver: also where the key is in memory.
func TestNewerFileIsNotWrittenOver(t *testing.T) {
	id, disk := keyring.KeyID{1}, keyringtest.NewDisk()
	name := nks.FileName(id)
	s := openStore(t, disk, []keyring.KEK{keyring.InlineKEK()}, nil)
	if _, err := put(t, s, id); err != nil {
		t.Fatal(err)
	}
	late := laterVersion(disk.Bytes(name))
	disk.Plant(name, 0o600, late)
	if s.Confirm(id) {
		t.Error("it is held")
	}
	if err := s.Rewrite(t.Context(), id); !errors.Is(err, nks.ErrVersion) || !bytes.Equal(disk.Bytes(name), late) {
		t.Errorf("it is written over: %v", err)
	}
	s.Close()
	s = openStore(t, disk, []keyring.KEK{keyring.InlineKEK()}, nil)
	defer s.Close()
	if _, err := put(t, s, id); !errors.Is(err, nks.ErrVersion) || !bytes.Equal(disk.Bytes(name), late) {
		t.Errorf("it is written over after a start: %v", err)
	}
}

// TestKeystoreIDOfANewerVersionStopsTheStart: another ID in its place would cost every hold.
func TestKeystoreIDOfANewerVersionStopsTheStart(t *testing.T) {
	disk := keyringtest.NewDisk()
	openStore(t, disk, []keyring.KEK{keyring.InlineKEK()}, nil).Close()
	late := []byte("v2 00112233445566778899aabbccddeeff\n" + strings.Repeat("more\n", 100))
	disk.Plant("keystore.id", 0o600, late)
	fsys, err := disk.Open()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keyring.OpenStore(t.Context(), fsys, []keyring.KEK{keyring.InlineKEK()}, nil); !errors.Is(err, nks.ErrVersion) {
		t.Error(err)
	}
	if !bytes.Equal(disk.Bytes("keystore.id"), late) {
		t.Errorf("it is %q", disk.Bytes("keystore.id"))
	}
}

func TestInspectSaysWhichFilesAreNewer(t *testing.T) {
	dir, id := t.TempDir(), keyring.KeyID{1}
	good, _ := newKeyFile(t, id, keyring.InlineKEK())
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
