// Package admin gives operators of a keyring an API over HTTP, a page that shows whether all is well and
// which command helps if not, a client, and the commands themselves.
//
// It works for a *node.Node and for a *keyring.Keyring of a host with a raft of its own. A host mounts a
// [Handler]:
//
//	h, err := admin.New(n, admin.Config{ // or admin.ForKeyring(k, keyring.AddServerOptions{}) in the place of n
//		Authorize: func(r *http.Request) (string, error) { return operatorOf(r.TLS) },
//		URLs:      func() map[raft.ServerID]string { return urls },
//	})
//	if err != nil {
//		return err
//	}
//	mux.Handle("/keyring/", http.StripPrefix("/keyring", h))
//
// and passes the rest of its arguments to [Command] where an operator types one:
//
//	err := admin.Command(ctx, os.Args[2:], admin.CommandOptions{HTTP: withCertificate})
//	if err != nil {
//		fmt.Fprintln(os.Stderr, "kvd:", err)
//	}
//	os.Exit(admin.ExitStatus(err))
//
// By default nobody is admitted. Config.Authorize decides about each request. The name that it returns for
// the sender is the actor of the changes, in Config.Audit of the keyring.
//
// A program calls the API with a [Client]. docs/problems.md and docs/operations.md of the repository say what
// each problem means, and what ends it. examples/controlplane is a service with all of this.
//
// # The API
//
// Bodies and answers are JSON. An error has a status from 400 on and {"error": "..."}. A leader-only request
// to another server may get a redirect to the leader, with status 307.
//
//	GET    /v1/status             this server, a Status
//	GET    /v1/cluster            all servers as this one sees them, an Overview
//	POST   /v1/keys               {"full", "compromised", "publish": "5m", "revoke": [ID]}: rotates
//	DELETE /v1/keys/ID            removes a key; ?force removes it with its data, ?now removes its file too
//	POST   /v1/keys/ID/adopt      adopts the key of a file
//	POST   /v1/rewrap             rewraps the key files of this server under its present KEKs alone
//	POST   /v1/servers            {"id", "addr", "nonvoter"}: adds a server, or gives it another address
//	POST   /v1/servers/ID/promote gives it a vote, and /v1/servers/ID/demote takes its vote away
//	DELETE /v1/servers/ID         removes a server; ?force even if too few others hold a key
//	POST   /v1/leader             {"id"}: transfers the leadership to that voter, or to any
//	GET    /v1/tokens             the join tokens that have not ended
//	POST   /v1/tokens             {"id", "ttl": "10m"}: makes one, a secret
//	DELETE /v1/tokens/TOKEN-ID    withdraws one
//	POST   /v1/backup             {"to": [RECIPIENT]}: a backup, followed by the trailers Backup-Sha256 and Backup-Signer, or Backup-Error
//	POST   /v1/backup/SHA256      confirms that the backup is safe
//
// After status 500 the outcome of a request is unknown. After 503 or a redirect, the request may be sent
// again. Verify a backup where its identities are, with the command verify or keyring.VerifyBackup: the
// identities never go to a server.
//
// # The commands
//
//	[-server URL] keys status [-json]       keys, servers, problems
//	[-server URL] keys rotate [-publish 5m] [-full] [-compromised]       make a new key; without -publish it signs at once: for emergencies
//	[-server URL] keys remove [-force] [-now] ID       re-encrypt the key's data, then remove it and end its tokens; -force: at once, and that data is lost; -now: without time to undo it
//	[-server URL] keys adopt ID       adopt the key of a file that the keyring does not know
//	[-server URL] keys rewrap       rewrap that server's key files under its present KEKs alone
//	[-server URL] servers add [-addr HOST:PORT] [-nonvoter] ID       let a server join, or change its address
//	[-server URL] servers remove [-force] ID       remove it; refused while too few others hold a key
//	[-server URL] servers promote ID       give it a vote; it must hold every key
//	[-server URL] servers demote ID       take its vote away; it stays a member with its keys
//	[-server URL] servers lead [ID]       transfer the leadership to that server, or to any
//	[-server URL] servers token [-ttl 1h] ID       print a token with which that server may join
//	[-server URL] servers tokens       list the tokens that have not ended
//	[-server URL] servers withdraw TOKEN-ID       end a token
//	[-server URL] backup -to RECIPIENT,... FILE        back up everything, for age recipients; prints the SHA-256
//	verify -identity FILE [-sha256 SUM] [-signer KEY] [-cluster ID] BACKUP       check that a backup can be restored
//	restore -identity FILE [-sha256 SUM] [-signer KEY] [-cluster ID] [-unauthenticated] [-data-only] [-force] ... BACKUP       make the directory of a server
//	inspect [-kek FILE,...] KEYSTORE-DIR       list the files there; a star marks the KEKs that open a key
//
// URL is that of any server. HOST:PORT alone means https, and http on a loopback address.
//
// backup writes a complete file, or none. If the machine stops meanwhile, a file FILE.*.part is left: it is
// no backup, and you may delete it. The next backup in that directory names it. The cluster counts a backup
// once its file is synced and renamed.
//
// verify and restore can check who wrote a backup: by the SHA-256 that backup has printed, or by the signer,
// which keys status shows. restore needs one of them or -unauthenticated. With -data-only a restore is a
// drill: a new cluster, whose tokens no other cluster accepts. inspect reads the key files of a server, which
// may be running. keys status ends within 5 seconds, even if the server that is asked accepts connections and
// hangs.
//
// # What attackers get
//
// Pages of another origin, and pages that frame this one, get nothing, not even with GET. Bodies have a size
// limit. Reading a body and writing an answer have time limits. Unknown parameters and members are errors,
// and so are paths that another program could read in another way. Texts from servers and files are shown
// without control characters in a terminal, and as plain text on the page.
package admin
