// Watchmap is the service of example.com/keyring/examples/watchmap over gRPC: an ordered map with watches, with a raft of its own,
// that had no keyring before. Raft, the keyring and the service's users are on the port of one grpc.Server.
//
//	watchmap -id s1 -dir DIR -addr HOST:PORT -initial s1@HOST:PORT,...      a server of a new cluster
//	watchmap -id s4 -dir DIR -addr HOST:PORT      one that is added then, on the leader: servers add -addr HOST:PORT s4
//	watchmap -dir DIR -addr HOST:PORT put KEY VALUE      a call of a user's, as are get, delete, list PREFIX, leader, watch NAME PREFIX and follow NAME
//	watchmap -dir DIR keys status      and the other commands of package admin, for the server of a directory
//	watchmap -id s1 -dir DIR -addr HOST:PORT restore -identity FILE -sha256 SUM BACKUP      makes DIR/raft and DIR/keystore
//
// DIR has tls.crt and tls.key, ca.crt, and 32 random bytes in kek. Users show a certificate of the same CA, of any name, and may do
// everything but what servers do among themselves. Operators use the unix socket DIR/admin.sock: who may open that may do
// everything. A server that has lost its directory starts without -initial: it would vote twice.
//
// # What the keyring takes
//
// serveBefore, in before_test.go, is the server as it was, and serve, in keyring.go, as it is. What operators call is in operate.go.
// The FSM is package store, which says what the keyring takes there. Everything else has not changed: raft.go, where raft has
// its log and how it starts; api.go, the service for users, whose messages are JSON, so that no code is generated; client.go and
// main.go. Tests show that the keyring takes 60 lines at most, of which none is about TLS, members or indexes; and that a cluster
// of before is upgraded, with its values; that users watch while keys rotate; that a cluster grows from one server to five, loses
// its leader by SIGKILL while values are encrypted again, shrinks to one server, and is restored from a backup.
//
// # A walk-through
//
// Three servers on one machine, which in the field each have a machine, and the CA's key is on none of them. In the directory grpc:
//
//	go build ./examples/watchmap && mkdir /tmp/wm && alias ca='openssl req -x509 -newkey ed25519 -nodes -days 365'
//	ca -keyout /tmp/wm/ca.key -out /tmp/wm/ca.crt -subj /CN=watchmap
//	all=s1@127.0.0.1:7101,s2@127.0.0.1:7102,s3@127.0.0.1:7103
//	for i in 1 2 3; do
//		d=/tmp/wm/s$i; mkdir $d; cp /tmp/wm/ca.crt $d; head -c 32 /dev/urandom >$d/kek; chmod 600 $d/kek
//		ca -CA /tmp/wm/ca.crt -CAkey /tmp/wm/ca.key -keyout $d/tls.key -out $d/tls.crt -subj /CN=s$i \
//			-addext basicConstraints=critical,CA:FALSE -addext extendedKeyUsage=serverAuth,clientAuth \
//			-addext subjectAltName=URI:keyring://watchmap/server/s$i,IP:127.0.0.1
//		./watchmap -id s$i -dir $d -addr 127.0.0.1:710$i -initial $all >$d/log 2>&1 &
//	done
//	alias wm='./watchmap -dir /tmp/wm/s1 -addr'
//	wm 127.0.0.1:7101 leader      # "s2", say: the next two are for the leader
//	wm 127.0.0.1:7102 watch all ""
//	wm 127.0.0.1:7102 put greeting hello      # the first key is active a second after the start
//	wm 127.0.0.1:7103 get greeting      # its value is in base64
//	wm 127.0.0.1:7103 follow all &      # tells of each write, and of no rotation
//	./watchmap -dir /tmp/wm/s2 keys rotate -full
//	./watchmap -dir /tmp/wm/s1 keys status
package main
