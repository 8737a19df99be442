package keystore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"example.com/keyring/internal/durable"
	"example.com/keyring/internal/kek"
	"example.com/keyring/internal/nks"
	"github.com/hashicorp/go-hclog"
)

// restoreBatch is how many files of a restore are synced together.
const restoreBatch = 256

// Restore writes the keys of a backup into the keystore directory in fsys, and closes it. In the directory there may be
// nothing, or what a Restore of the same keys has left that was cut short; nothing in it is overwritten. The
// keys are the caller's to wipe.
func Restore(ctx context.Context, fsys durable.FS, keks *kek.Set, log hclog.Logger, keys []Key) (err error) {
	names, err := durable.New(fsys).List()
	if err == nil {
		err = checkNames(names)
	}
	if err != nil {
		return errors.Join(err, fsys.Close())
	}
	s, err := Open(ctx, fsys, keks, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	left, err := s.unrestored(keys)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(left, restoreBatch) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := errors.Join(s.Put(ctx, some...)...); err != nil {
			return err
		}
	}
	return nil
}

// CheckDir says what lies in a directory that Restore would refuse for its name. It makes nothing; the directory need
// not be there.
func CheckDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var names []string
	for _, e := range entries {
		if e.Name() != durable.LockName && !durable.IsTemp(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return checkNames(names)
}

// checkNames says what lies in a directory that is to be restored into and is no keystore's, or of a key that was
// set aside.
func checkNames(names []string) error {
	for _, name := range names {
		if _, key := nks.ParseFileName(name); !key && name != identity {
			return fmt.Errorf("the directory is not empty: it has %q", name)
		}
	}
	return nil
}

// unrestored returns the keys of a backup that are not in the directory yet, as they are to be. Whatever else is there is
// an error.
func (s *Store) unrestored(keys []Key) (left []Key, err error) {
	if err := s.unexpectedFiles(); err != nil {
		return nil, fmt.Errorf("the directory is not empty: %w", err)
	}
	there := s.all()
	for _, k := range keys {
		m := there[k.ID]
		if m != nil && m.check != k.Check {
			return nil, fmt.Errorf("the directory has another key with the ID %s", k.ID)
		}
		if m == nil || m.needsRewrap() { // also where nobody knows that it is durable
			left = append(left, k)
		}
		delete(there, k.ID)
	}
	for id := range there {
		return nil, fmt.Errorf("the directory is not empty: it has key %s, which is not in the backup", id)
	}
	return left, nil
}

// unexpectedFiles says what an opened directory had that is no good key.
func (s *Store) unexpectedFiles() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.setAside) > 0 {
		return fmt.Errorf("it had a file that is now set aside as %q", s.setAside[0])
	}
	for id, f := range s.faults {
		return fmt.Errorf("it has a file of key %s that does not open: %w", id, f.Err)
	}
	return nil
}
