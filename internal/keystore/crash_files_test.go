package keystore_test

// What a campaign does with KEKs and with versions of files, and with files that somebody has altered.

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"example.com/keyring/internal/kek/kektest"
	"example.com/keyring/internal/meta"
	"example.com/keyring/internal/nks"
)

// rewrap moves all files to the KEK that wraps now. If it says that they are, the others are needed no more, and neither are
// the older versions of this one.
func (c *campaign) rewrap(s store) {
	for id := range s.FromNomad() { // it gets a file of ours
		delete(c.gone, id)
	}
	if err := s.Rewrap(c.t.Context()); err != nil || s.OnOldKEKs() != 0 {
		return
	}
	last := len(c.keks) - 1
	c.needed = last
	if v, ok := c.keks[last].(*kektest.Versioned); ok {
		v.Destroy()
	}
}

// nextVersion has the KEK that wraps use another version of its key.
func (c *campaign) nextVersion(s store) {
	if v, ok := c.keks[len(c.keks)-1].(*kektest.Versioned); ok {
		c.what = "next version"
		v.Rotate()
		c.rewrap(s)
	}
}

// alter changes the file of a key as somebody does who knows the format, and no key. Nothing tells in version 1.
func (c *campaign) alter() {
	id, ok := c.any(c.held)
	if !ok {
		return
	}
	name, file := c.fileOf(id)
	if file == nil || file.Version < 2 || len(file.Wrapped) > 8 {
		return
	}
	if c.chance.IntN(2) == 0 {
		file.Created = file.Created.Add(time.Second)
	} else {
		file.Wrapped = append(file.Wrapped, nks.Wrapped{KEK: "another " + string(rune('a'+len(file.Wrapped))), Ciphertext: []byte{1}})
	}
	b, err := file.Encode()
	if err != nil {
		c.t.Fatal(err)
	}
	replaced := c.disk.Bytes(name) // nothing has kept it, if that was altered too
	c.altered[id] = slices.DeleteFunc(c.altered[id], func(b []byte) bool { return bytes.Equal(b, replaced) })
	c.disk.Plant(name, 0o600, b)
	c.altered[id] = append(c.altered[id], b)
	c.what = "altered file"
	c.during[c.what]++
}

// fileOf returns the file of a key that has the key's name, if there is one.
func (c *campaign) fileOf(id meta.KeyID) (name string, file *nks.File) {
	for _, name := range []string{nks.BesideName(id), nks.FileName(id)} {
		if f, err := nks.DecodeFile(c.disk.Bytes(name)); err == nil {
			return name, f
		}
	}
	return "", nil
}

// checkVersions wants the file of no held key to be of an older version than it was, and those that were altered to be
// reported.
func (c *campaign) checkVersions(s store, when string) {
	altered := map[meta.KeyID]bool{}
	for _, a := range s.Report(&meta.Ring{}).Altered {
		altered[a.Key] = true
	}
	for id := range c.held {
		_, file := c.fileOf(id)
		if file == nil || file.Version < c.version[id] {
			c.t.Errorf("%s: the file of key %s is gone, or was of version %d", when, id, c.version[id])
			continue
		}
		c.version[id] = file.Version
		if len(c.altered[id]) > 0 && !altered[id] {
			c.t.Errorf("%s: the file of key %s was altered, and that is not reported", when, id)
		}
	}
}

// checkAltered wants what altered files had to be there, in their places or in one copy.
func (c *campaign) checkAltered(when string) {
	for id, all := range c.altered {
		for _, content := range all {
			kept, copies := 0, 0
			for _, name := range c.disk.Names() {
				if !strings.HasPrefix(name, id.String()) || !bytes.Equal(c.disk.Bytes(name), content) {
					continue
				}
				if kept++; strings.Contains(name, ".altered-") {
					copies++
				}
			}
			if kept == 0 || copies > 1 {
				c.t.Errorf("%s: of what the altered file of key %s had there are %d copies", when, id, copies)
			}
		}
	}
}
