package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"

	"example.com/keyring"
	"filippo.io/age"
	"github.com/hashicorp/raft"
)

// keks are what wraps a server's keys: a file of its own, and escrow if there is any, which wraps
// and does not open. With the identity of the escrow, old is the way back when the file is lost.
func (o options) keks(dir string, id raft.ServerID) (now, old []keyring.KEK, err error) {
	own, err := keyring.FileKEK(filepath.Join(dir, string(id)+".kek"))
	if err != nil {
		return nil, nil, err
	}
	if o.escrow == "" {
		return []keyring.KEK{own}, nil, nil
	}
	to, err := age.ParseRecipients(strings.NewReader(strings.ReplaceAll(o.escrow, ",", "\n")))
	if err != nil {
		return nil, nil, usage{fmt.Errorf("-escrow: %w", err)}
	}
	escrow, err := keyring.AgeKEK(to)
	if err != nil {
		return nil, nil, err
	}
	if o.identity != "" {
		with, err := readIdentities(o.identity)
		if err != nil {
			return nil, nil, err
		}
		wayBack, err := keyring.AgeKEK(to, with...)
		if err != nil {
			return nil, nil, err
		}
		old = []keyring.KEK{wayBack}
	}
	return []keyring.KEK{own, escrow}, old, nil
}

// schedule is when the leader makes backups by itself: once a day, if there is a directory for them, which the servers share.
func (o options) schedule() (s keyring.BackupSchedule, err error) {
	if o.backups == "" {
		return s, nil
	}
	if s.To, err = age.ParseRecipients(strings.NewReader(strings.ReplaceAll(o.to, ",", "\n"))); err != nil {
		return s, usage{fmt.Errorf("-to: %w", err)}
	}
	s.Store = keyring.BackupDir(o.backups)
	return s, nil
}

// readIdentities reads age identities.
func readIdentities(path string) ([]age.Identity, error) {
	b, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("-identity: %w", err)
	}
	with, err := age.ParseIdentities(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("-identity: %w", err)
	}
	return with, nil
}
